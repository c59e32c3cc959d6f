"""Texts made safe for a prompt, and the tokens of the answers that may follow it."""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Protocol

from loop.errors import AnnotatorError
from loop.prompt import CHAT_FRAME_TOKENS, PromptVariant, one_line

FRAME_TOKENS = 16  # at most so many begin and end marks stand around a prompt
DIGITS = 10  # more classes than this have numbers of several digits

# Texts must not close their turn or open another's. A space after the first character breaks the
# marks that chat models use, and leaves them legible.
CONTROL = re.compile(
    r"<(?=[|｜][^<>|｜\s]{1,40}[|｜]?>|[^<>|｜\s]{1,40}[|｜]>|/?s>)"
    r"|<(?=(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|AVAILABLE_TOOLS)\])"
)


def without_control_marks(text: str) -> str:
    """The text with the marks of chat models broken by a space."""
    return CONTROL.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def most_tokens_of(text: str, *, chat: bool = False) -> int:
    """No tokenizer makes more tokens of the text: each stands for a byte at least.

    Some put the text into its compatibility form first, which may be longer. What a tokenizer puts
    around a prompt counts, and with ``chat`` so does the chat template, within reason.
    """
    longest = max(
        len(form.encode("utf-8", "surrogatepass"))
        for form in (text, unicodedata.normalize("NFKC", text))
    )
    return longest + (CHAT_FRAME_TOKENS if chat else FRAME_TOKENS)


class Tokenise(Protocol):
    """A model's tokenizer; ``bare`` leaves out what stands before a whole prompt."""

    def __call__(self, text: str, *, bare: bool = False) -> list[int]:
        """Token ids."""
        ...


def answers_of(variant: PromptVariant) -> tuple[str, ...]:
    """What the model writes for each class, without the space before it.

    Raises:
        AnnotatorError: two labels look the same.
    """
    answers = tuple(one_line(answer) for answer in variant.answers)
    for i, answer in enumerate(answers):
        if answer in answers[:i]:
            twin = variant.labels[answers.index(answer)].name
            raise AnnotatorError(
                f"The labels {twin!r} and {variant.labels[i].name!r} look the same to the"
                " model; rename one."
            )
    return answers


def answer_tokens(
    variant: PromptVariant, tokens: Tokenise, *, chat: bool
) -> tuple[tuple[int, ...], ...]:
    """Token ids of each class's answer, as they follow the prompt.

    Args:
        variant: the prompt; up to ten class numbers must be one token each.
        tokens: of the model.
        chat: the answer begins the model's turn instead of following the prompt.
    Raises:
        AnnotatorError: the tokens do not tell the labels apart.
    """
    answers = answers_of(variant)
    if chat:
        ids = [tuple(tokens(answer, bare=True)) for answer in answers]
    else:
        prompt = variant.suffix("a")
        before = tokens(prompt)
        lead = " " if variant.label_form == "names" else ""
        ids = []
        for answer in answers:
            after = tokens(prompt + lead + answer)
            if after[: len(before)] != before:
                raise AnnotatorError(
                    f"The model's tokenizer cannot tell the label {answer!r} from the prompt"
                    " before it; use another model or another label name."
                )
            ids.append(tuple(after[len(before) :]))
    long = [answer for answer, answer_ids in zip(answers, ids, strict=True) if len(answer_ids) > 1]
    if variant.label_form == "ids" and len(answers) <= DIGITS and long:
        raise AnnotatorError(
            f"The class number {long[0]} is several tokens to this model, so it cannot be read as"
            " one; use the label form 'names'."
        )
    if not all(ids) or len(set(ids)) < len(ids):
        raise AnnotatorError(
            f"The model's tokenizer cannot tell the labels {', '.join(answers)} apart; rename them."
        )
    return tuple(ids)


def chat_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens of the model's chat template before and after what the user says.

    The frame is tokenised with its control marks; what stands within it is plain text.

    Raises:
        AnnotatorError: the model has no chat template.
    """
    mark = "\x00"
    try:
        frame: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
        )
    except ValueError as exc:
        raise AnnotatorError(
            "The model has no chat template; set annotator.chat = false or name another model."
        ) from exc
    before, _, after = frame.partition(mark)
    first, last = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after)
    )
    return list(first), list(last)
