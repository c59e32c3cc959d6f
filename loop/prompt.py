"""The wording that the LLM sees: classes, examples, one frozen prompt."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

CHAT_FRAME_TOKENS = 2048  # templates that bring a system prompt of their own have some hundred


@dataclass(frozen=True)
class Label:
    """One class: its name, as it stands in the data, and what it means."""

    name: str
    description: str = ""


@dataclass(frozen=True)
class Demonstration:
    """A worked example shown to the LLM before the question."""

    text: str
    label: str


def one_line(text: str) -> str:
    """Without line breaks and control characters, so that no text can look like a new prompt line.

    Runs of white space become one space; unpaired surrogates, which no tokenizer takes, too.
    """
    if not text.isprintable():
        text = "".join(
            " " if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in text
        )
    return " ".join(text.split())


LabelForm = Literal["names", "ids"]


@dataclass(frozen=True)
class PromptTemplate:
    """The wording of a prompt; what stands in braces is filled in.

    Braces around anything but one word, as in JSON, are plain text.

    Attributes:
        instruction: opens the prompt: ``{task}``, and ``{labels}``, the list of classes.
        item: one text, as demonstration and as question: ``{text}``; the answer follows it.
    Raises:
        ValueError: ``{text}`` does not stand in ``item`` exactly once, a word in braces is
            unknown, or ``item`` ends in white space.
    """

    instruction: str = "{task}\n{labels}"
    item: str = "Text: {text}\nLabel:"

    def __post_init__(self) -> None:
        if self.item.count("{text}") != 1:
            raise ValueError(f"the item template needs {{text}} once: {self.item!r}")
        if self.item != self.item.rstrip():
            raise ValueError(
                f"the item template must not end in white space, which comes with the answer:"
                f" {self.item!r}"
            )
        for name, template, known in (
            ("instruction", self.instruction, ("task", "labels")),
            ("item", self.item, ("text",)),
        ):
            for word in re.findall(r"\{(\w+)\}", template):
                if word not in known:
                    allowed = ", ".join(f"{{{k}}}" for k in known)
                    raise ValueError(f"{{{word}}} in the {name} template is none of {allowed}")


@dataclass(frozen=True)
class PromptVariant:
    """One frozen prompt: instruction, classes and demonstrations in a fixed order.

    The prefix is the same for every item, so its work can be shared; the suffix holds the item.

    Attributes:
        label_form: whether the LLM answers with a class's name or with its number.
        order: the class listed at each place, and so the class of each number; () as they come.
        template: the wording.
    Raises:
        ValueError: ``order`` does not hold every class once.
    """

    index: int
    task: str
    labels: tuple[Label, ...]
    demonstrations: tuple[Demonstration, ...]
    label_form: LabelForm = "names"
    order: tuple[int, ...] = ()
    template: PromptTemplate = PromptTemplate()

    def __post_init__(self) -> None:
        if self.order and sorted(self.order) != list(range(len(self.labels))):
            raise ValueError(
                f"order {self.order} must hold each of {len(self.labels)} classes once"
            )

    @property
    def _listed(self) -> tuple[int, ...]:
        return self.order or tuple(range(len(self.labels)))

    @property
    def answers(self) -> tuple[str, ...]:
        """What the LLM is to write for each class, in the classes' own order."""
        if self.label_form == "names":
            return tuple(label.name for label in self.labels)
        return tuple(str(self._listed.index(row)) for row in range(len(self.labels)))

    @property
    def continuations(self) -> tuple[str, ...]:
        """What comes right after the suffix for each class; a name begins with its space."""
        lead = " " if self.label_form == "names" else ""
        return tuple(lead + answer for answer in self.answers)

    @property
    def prefix(self) -> str:
        """Everything before the item's own text."""
        listed = [self.labels[row] for row in self._listed]
        if self.label_form == "names":
            lines = [f"Labels: {', '.join(label.name for label in listed)}."]
            lines += [f"{la.name}: {la.description}" for la in listed if la.description]
        else:
            lines = [
                f"{number}: {la.name}{f' — {la.description}' if la.description else ''}"
                for number, la in enumerate(listed)
            ]
        shown = [f"{self._question(d.text)} {self._answer_to(d)}" for d in self.demonstrations]
        opening = _filled(
            self.template.instruction, task=self.task.strip(), labels="\n".join(lines)
        )
        return "\n\n".join([opening, *shown]) + "\n\n"

    def suffix(self, text: str) -> str:
        """The item's part. A name with a space before it comes next, or, without one, a number."""
        return self._question(text) + ("" if self.label_form == "names" else " ")

    def tidied(self, tidy: Callable[[str], str] = one_line) -> PromptVariant:
        """With examples as the LLM is shown them: their texts tidied as those of items are."""
        names = self.label_form == "names"
        shown = tuple(
            replace(d, text=tidy(d.text), label=one_line(d.label) if names else d.label)
            for d in self.demonstrations
        )
        return replace(self, demonstrations=shown)

    def _question(self, text: str) -> str:
        return _filled(self.template.item, text=text)

    def _answer_to(self, shown: Demonstration) -> str:
        if self.label_form == "names":
            return shown.label
        return self.answers[[label.name for label in self.labels].index(shown.label)]

    @property
    def hash(self) -> str:
        """16 hex digits over position and all that the LLM sees, stored with each vote."""
        seen: list[object] = [
            self.index,
            self.prefix,
            self.suffix(""),
            [la.name for la in self.labels],
        ]
        if self.label_form == "ids":
            seen.append(self.answers)
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def _filled(template: str, **values: str) -> str:
    """The template with its braces filled; braces in the values stay as they are."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda match: values[match[1]], template)
