"""The labelling page: what people see in Label Studio, and how their answers name the labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from loop.errors import ReviewerError
from loop.prompt import Label

UNSURE = "Unsure / none fits"
FROM_NAME, TO_NAME = "label", "text"
FILTER_FROM = 25  # more labels than this get a search box
FOLD_FROM = 8  # more descriptions than this are folded away

_HOTKEYS = "123456789qwertyasdfgzxcvb"  # under the left hand, and free in Label Studio

# Not allowed in XML, or not storable everywhere: controls, lone surrogates, non-characters.
_UNSENDABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def sendable(text: str) -> str:
    """The text with characters that no server stores replaced by U+FFFD."""
    return _UNSENDABLE.sub("\ufffd", text)


def _inert(text: str) -> str:
    """Without variables: ``$name`` is one, ``$`` and an invisible word joiner is not."""
    return text.replace("$", "$\u2060")


def shown_name(label: str) -> str:
    """A label as it stands on the page and in Label Studio's answers.

    It is the label itself, but for outer white space and what the page cannot hold: controls, line
    breaks, and ``$`` before a word, which would be a variable.
    """
    shown = _inert(re.sub(r"[\t\r\n]", " ", sendable(label)))
    return shown.strip() or "\u2423"


def shown_names(labels: Sequence[Label]) -> dict[str, str]:
    """Page name -> label name.

    Raises:
        ReviewerError: two labels cannot be told apart on the page.
    """
    names: dict[str, str] = {}
    for label in labels:
        shown = shown_name(label.name)
        if shown == UNSURE:
            raise ReviewerError(
                f"The label {label.name!r} looks like the page's own answer {UNSURE!r}, which"
                " people give where no label fits; rename it."
            )
        if shown in names:
            other = names[shown]
            raise ReviewerError(
                f"The labels {other!r} and {label.name!r} look the same on the labelling page;"
                " rename one of them."
            )
        names[shown] = label.name
    return names


def choice_result(label: str | None) -> list[dict[str, Any]]:
    """An answer as Label Studio's page would send it; None is the "unsure" answer."""
    choice = UNSURE if label is None else shown_name(label)
    return [
        {
            "from_name": FROM_NAME,
            "to_name": TO_NAME,
            "type": "choices",
            "value": {"choices": [choice]},
        }
    ]


_STYLE = """
.gl-text { max-width: 50em; max-height: 50vh; overflow-y: auto; padding: 8px 0 16px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.gl-text *, .gl-task *, .gl-why *, .gl-help *, .gl-labels label { unicode-bidi: plaintext;
  text-align: start; }
.gl-text .lsf-richtext__line { display: block; }
.gl-text * { font-size: 17px !important; line-height: 1.6 !important; }
.gl-why *, .gl-help * { font-size: 14px !important; font-weight: 400 !important; }
.gl-why { opacity: 0.75; }
.gl-task, .gl-why { max-width: 50em; }
.gl-labels { max-height: 40vh; overflow-y: auto; }
.gl-labels .lsf-choices_layout_inline { display: grid; gap: 2px 12px;
  grid-template-columns: repeat(auto-fill, minmax(12em, 1fr)); }
.gl-find { max-width: 30em; }
.gl-note { max-width: 50em; margin-top: 8px; }
.gl-help { max-width: 50em; margin-top: 12px; }
"""


def _attr(text: str) -> str:
    """Quoted for an XML attribute."""
    return quoteattr(_inert(sendable(text)))


def page(labels: Sequence[Label], *, task: str, note: bool = True, why: bool = False) -> str:
    """The labelling page: text, labels with hotkeys, their meanings, a note.

    Args:
        labels: the classes, in the order shown.
        task: the question, in a sentence or two.
        note: whether a free note can be left.
        why: whether each task carries a sentence on why it is asked.
    Returns:
        Label Studio's XML.
    """
    names = {label: shown for shown, label in shown_names(labels).items()}
    many = len(labels) > FILTER_FROM
    lines = ["<View>", f"  <Style>{_STYLE}</Style>"]
    if task.strip():
        lines.append('  <View className="gl-task">')
        lines.append(f'    <Header value={_attr(task.strip())} size="5"/>')
        lines.append("  </View>")
    if why:
        lines.append('  <View className="gl-why"><Header value="$why" size="6"/></View>')
    lines += [
        '  <View className="gl-text">',
        f'    <Text name="{TO_NAME}" value="$text" selectionEnabled="false"/>',
        "  </View>",
    ]
    if many:
        lines.append(
            f'  <View className="gl-find"><Filter name="find" toName="{FROM_NAME}" minlength="0"'
            ' placeholder="Type to find a label" hotkey="shift+f"/></View>'
        )
    lines.append('  <View className="gl-labels">')
    lines.append(
        f'    <Choices name="{FROM_NAME}" toName="{TO_NAME}" choice="single-radio"'
        f' required="true" requiredMessage="Choose a label, or skip."'
        f' showInline="{"true" if 6 < len(labels) <= FILTER_FROM else "false"}">'
    )
    for position, label in enumerate(labels):
        parts = [f"value={quoteattr(names[label.name])}"]
        if label.description.strip():
            parts.append(f"hint={_attr(label.description.strip())}")
        if not many and position < len(_HOTKEYS):
            parts.append(f'hotkey="{_HOTKEYS[position]}"')
        lines.append(f"      <Choice {' '.join(parts)}/>")
    lines.append(f'      <Choice value={quoteattr(UNSURE)} hotkey="0"/>')
    lines += ["    </Choices>", "  </View>"]
    if note:
        lines.append(
            f'  <View className="gl-note"><TextArea name="note" toName="{TO_NAME}" rows="1"'
            ' maxSubmissions="1" editable="true" placeholder="Note (optional)"/></View>'
        )
    described = [label for label in labels if label.description.strip()]
    if described:
        meanings = [f"{label.name}: {label.description.strip()}" for label in described]
        listed = [f'    <Header value={_attr(meaning)} size="6"/>' for meaning in meanings]
        if len(described) > FOLD_FROM:
            listed = [
                '    <Collapse><Panel value="What the labels mean">',
                *listed,
                "    </Panel></Collapse>",
            ]
        lines += ['  <View className="gl-help">', *listed, "  </View>"]
    lines.append("</View>")
    return "\n".join(lines)


def choices_of(config: str) -> set[str]:
    """The labels that a labelling page offers, as they stand on it; none if it is not ours."""
    try:
        root = ElementTree.fromstring(config)  # noqa: S314 - expat reads no files and no network
    except ElementTree.ParseError:
        return set()
    return {str(choice.get("value")) for choice in root.iter("Choice")}
