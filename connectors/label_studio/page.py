"""The labelling page: what people see in Label Studio, and how their answers name the labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from loop.errors import ReviewerError
from loop.prompt import Label

UNSURE = "Unsure / none fits"
FROM_NAME, TO_NAME = "label", "text"
FILTER_FROM = 25  # more labels than this get a search box
GRID_FROM = 6  # more labels than this stand in a grid that uses the width
MEANING_CHARS = 160  # a longer meaning is cut short beside its label, and whole below
HINT_FROM = 80  # characters of a meaning that the grid may cut short
SUBMIT = "Ctrl+Enter (Mac: Command+Enter)"

_KEPT = "Kept up to date by goldloop from the campaign file"

_HOTKEYS = "123456789qwertyasdfgzxcvbiopjklnm"  # left hand first; all that are free there

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


# Colours are Label Studio's own, which change with its dark mode. Its parts have "lsf-" class
# names; where a version has others, a rule does nothing and the page is as Label Studio makes it.
_STYLE = """
.lsf-sidepanels { padding: 0 !important; }
.lsf-sidepanels__wrapper, .lsf-current-task__task-count { display: none !important; }
.gl-text *, .gl-task *, .gl-why *, .gl-help *, .gl-labels label * {
  unicode-bidi: plaintext; text-align: start; }
.gl-task h4, .gl-place h4, .gl-why h4, .gl-keys h4, .gl-help h4 { margin: 0 !important;
  overflow-wrap: anywhere; }
.gl-place *, .gl-why *, .gl-keys *, .gl-help * { font-size: 14px !important;
  font-weight: 400 !important; }
.gl-place *, .gl-why *, .gl-keys * {
  color: var(--color-neutral-content-subtler, #6b6860) !important; }
.gl-task, .gl-why, .gl-text, .gl-note, .gl-help { max-width: 50em; }
.gl-text { padding: 8px 0 16px; white-space: pre-wrap; overflow-wrap: anywhere; }
.gl-text .lsf-richtext__line { display: block; padding: 0; }
.gl-text br { display: none; }
.gl-text * { font-size: 17px !important; line-height: 1.6 !important; }
.gl-ask { position: sticky; bottom: -16px; z-index: 2; padding: 6px 0 16px;
  background: var(--color-neutral-background, #fff); }
.gl-labels { max-height: 45vh; overflow-y: auto; }
.gl-labels .lsf-choices { display: grid; gap: 4px; margin: 0;
  grid-template-columns: minmax(0, 60em); }
.gl-grid .lsf-choices { gap: 4px 8px; align-items: stretch;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15em), 1fr)); }
.gl-labels .lsf-choice { line-height: 1.35; min-width: 0; }
.gl-labels .lsf-choice__item { height: 100%; }
.gl-labels .ant-radio-wrapper { display: flex; box-sizing: border-box; width: 100%; margin: 0;
  padding: 6px 8px; border: 1px solid var(--color-neutral-border, #ccc); border-radius: 6px;
  background: var(--color-neutral-background, #fff); cursor: pointer; }
.gl-labels .ant-radio-wrapper::after { display: none; }
.gl-labels .ant-radio-wrapper:hover { background: var(--color-neutral-surface-hover, #f2f1ee); }
.gl-labels .ant-radio-wrapper:focus-within,
.gl-labels .ant-radio-wrapper-checked { border-color: var(--color-primary-border, #4c5fa9);
  box-shadow: inset 0 0 0 1px var(--color-primary-border, #4c5fa9);
  background: var(--color-primary-background, #eef0ff) !important; }
.gl-labels .ant-radio { position: absolute; opacity: 0; }
.gl-labels .ant-radio + span { flex: 1; min-width: 0; padding: 0; }
.gl-choice { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 2px 10px;
  align-items: start; font-weight: 400; overflow-wrap: anywhere; white-space: normal; }
.gl-choice b { font-weight: 600; }
.gl-choice i { grid-column: 2; font-style: normal;
  color: var(--color-neutral-content-subtle, #55534c); }
.gl-choice kbd { min-width: 1.7em; padding: 1px 4px; border-radius: 4px; text-align: center;
  font: 600 13px/1.3 ui-monospace, monospace; color: var(--color-neutral-content, #222);
  border: 1px solid var(--color-neutral-border-bold, #888); border-bottom-width: 2px;
  background: var(--color-neutral-surface, #f7f6f3); }
.gl-labels .lsf-hint { display: none; }
.gl-grid .gl-choice b, .gl-grid .gl-choice i { display: -webkit-box; overflow: hidden;
  -webkit-box-orient: vertical; -webkit-line-clamp: 3; }
.gl-grid .gl-choice i { font-size: 13px; -webkit-line-clamp: 2; }
.gl-labels .lsf-choice:last-child { position: sticky; bottom: 0; z-index: 1;
  display: block !important; grid-column: 1 / -1;
  box-shadow: 0 8px 0 var(--color-neutral-background, #fff); }
.gl-find { max-width: 30em; padding-bottom: 6px; }
.gl-find input { min-height: 32px; border-color: var(--color-neutral-border, #ccc) !important;
  color: var(--color-neutral-content, #222) !important;
  background: var(--color-neutral-background, #fff) !important; }
.gl-find input::placeholder { color: var(--color-neutral-content-subtler, #6b6860); }
.gl-keys { padding-top: 6px; }
.gl-help { margin-top: 12px; }
.gl-help .ant-collapse, .gl-help .ant-collapse-item, .gl-help .ant-collapse-content {
  border-color: var(--color-neutral-border, #ccc) !important;
  background: var(--color-neutral-background, #fff) !important; }
.gl-help .ant-collapse-header, .gl-help .ant-collapse-content {
  color: var(--color-neutral-content, #222) !important; }
.gl-help .gl-name * { font-weight: 600 !important; }
.gl-help .gl-name { margin-top: 8px; }
.gl-help .gl-example { padding-inline-start: 1.5em; }
.gl-help .gl-example * { color: var(--color-neutral-content-subtle, #55534c); }
.ant-modal-content, .ant-modal-content h2 { color: var(--color-neutral-content, #222);
  background: var(--color-neutral-background, #fff) !important; }
@media (min-width: 700px) {
  .gl-row .gl-choice { grid-template-columns: auto fit-content(40%) minmax(0, 1fr); }
  .gl-row .gl-choice i { grid-column: 3; }
}
@media (max-width: 700px) {
  .gl-keys, .lsf-menu-header__context, .lsf-menu-header__hotkeys, .lsf-history-buttons,
  .lsf-current-task__task-id { display: none !important; }
  .lsf-menu-header__trigger { min-width: 0 !important; width: auto !important; gap: 12px; }
  .lsf-menu-header { justify-content: space-between; gap: 12px; }
  .lsf-editor { min-width: 0 !important; width: 100% !important; margin: 0 !important; }
  .lsf-bottombar, .lsf-bottombar__group, .lsf-controls { min-width: 0 !important; }
  .lsf-bottombar__group:last-child { flex: 1; justify-content: flex-end; }
  [class*="toast-viewport"] { bottom: 64px !important; }
  .lsf-controls button { width: auto !important; min-width: 44px; }
  .gl-labels .ant-radio-wrapper { min-height: 44px; align-items: center; }
}
"""


def _attr(text: str) -> str:
    """Quoted for an XML attribute."""
    return quoteattr(_inert(sendable(text)))


def _choice(shown: str, key: str, meaning: str) -> str:
    """One label as it stands on the page: its key in a box, its name, what it means."""
    look = "".join(
        f"<{tag}>{escape(sendable(text))}</{tag}>"
        for tag, text in (("kbd", key), ("b", shown), ("i", meaning))
        if text
    )
    html = _attr(f'<span class="gl-choice" dir="auto">{look}</span>')
    parts = [f"value={quoteattr(shown)}", f"html={html}"]
    if len(meaning) > HINT_FROM:  # the grid cuts it short
        parts.append(f"hint={_attr(meaning)}")
    if key:
        parts.append(f'hotkey="{key}"')
    return f"<Choice {' '.join(parts)}/>"


def _shown_whole(labels: Sequence[Label]) -> bool:
    """Whether each label has a line of its own, with all of its meaning."""
    return len(labels) <= GRID_FROM and all(len(la.description) <= MEANING_CHARS for la in labels)


def _guidelines(labels: Sequence[Label], examples: Mapping[str, Sequence[str]]) -> list[str]:
    """Meanings and examples of all labels, folded; nothing where the page shows them anyway."""
    told = [la for la in labels if la.description.strip() or examples.get(la.name)]
    if not told or (_shown_whole(labels) and not any(examples.values())):
        return []
    lines = ['  <View className="gl-help"><Collapse><Panel value="What the labels mean">']
    for label in told:
        said = [("gl-name", label.name), ("gl-meaning", label.description.strip())]
        said += [("gl-example", f"Example: {one}") for one in examples.get(label.name, ())]
        lines += [
            f'    <View className="{kind}"><Header value={_attr(text)} size="6"/></View>'
            for kind, text in said
            if text
        ]
    return [*lines, "  </Panel></Collapse></View>"]


def page(
    labels: Sequence[Label],
    *,
    task: str,
    note: bool = True,
    why: bool = False,
    examples: Mapping[str, Sequence[str]] | None = None,
    submit: str = SUBMIT,
) -> str:
    """The labelling page: text, labels with keys and meanings, a note, folded guidelines.

    Args:
        labels: the classes, in the order shown.
        task: the question, in a sentence or two.
        note: whether a free note can be left.
        why: whether each task carries a sentence on why it is asked.
        examples: label name -> texts that clearly have this label.
        submit: the keys that submit, for people.
    Returns:
        Label Studio's XML.
    """
    names = {label: shown for shown, label in shown_names(labels).items()}
    lines = ["<View>", f"  <Style>{_STYLE}</Style>"]
    if task.strip():
        lines.append('  <View className="gl-task">')
        lines.append(f'    <Header value={_attr(task.strip())} size="5"/>')
        lines.append("  </View>")
    lines.append('  <View className="gl-place"><Header value="$place" size="6"/></View>')
    if why:
        lines.append('  <View className="gl-why"><Header value="$why" size="6"/></View>')
    lines += [
        '  <View className="gl-text">',
        f'    <Text name="{TO_NAME}" value="$text" selectionEnabled="false"/>',
        "  </View>",
        '  <View className="gl-ask">',
    ]
    if len(labels) > FILTER_FROM:
        lines.append(
            f'  <View className="gl-find"><Filter name="find" toName="{FROM_NAME}" minlength="0"'
            ' placeholder="Type to find a label" hotkey="shift+f"/></View>'
        )
    rows = "gl-row" if _shown_whole(labels) else "gl-grid"
    lines.append(f'  <View className="gl-labels {rows}">')
    lines.append(
        f'    <Choices name="{FROM_NAME}" toName="{TO_NAME}" choice="single-radio"'
        ' required="true" requiredMessage="Choose a label, or skip." showInline="false">'
    )
    for position, label in enumerate(labels):
        key = _HOTKEYS[position : position + 1]
        lines.append(f"      {_choice(names[label.name], key, label.description.strip())}")
    lines.append(f"      {_choice(UNSURE, '0', '')}")
    lines += ["    </Choices>", "  </View>"]
    keys = f"Press the key of a label, then {submit}."
    lines.append(f'  <View className="gl-keys"><Header value={_attr(keys)} size="6"/></View>')
    lines.append("  </View>")
    if note:
        lines.append(
            f'  <View className="gl-note"><TextArea name="note" toName="{TO_NAME}" rows="1"'
            ' maxSubmissions="1" editable="true" placeholder="Note (optional)"/></View>'
        )
    lines += _guidelines(labels, examples or {})
    lines.append("</View>")
    return "\n".join(lines)


def instructions(
    labels: Sequence[Label], *, task: str, examples: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Task, meanings and examples as the project's instructions, in the HTML that it takes.

    The last line says whose they are, and changes with them: see ``instructions_version``.
    """
    parts = [f"<p>{_html(task.strip())}</p>"] if task.strip() else []
    for label in labels:
        meaning = f": {_html(label.description.strip())}" if label.description.strip() else ""
        shown = (examples or {}).get(label.name, ())
        told = "".join(f"<br>Example: {_html(one)}" for one in shown)
        parts.append(f"<p><b>{_html(label.name)}</b>{meaning}{told}</p>")
    parts.append(f"<p><b>{UNSURE}</b>: where no label fits, or you cannot tell.</p>")
    text = "<br>".join(parts)
    version = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text}<br><p>{_KEPT} (version {version}).</p>"


def instructions_version(text: str) -> str | None:
    """The version of instructions that goldloop wrote; None where people wrote their own."""
    version = re.search(rf"{re.escape(_KEPT)} \(version ([0-9a-f]{{8}})\)", text)
    return version[1] if version else None


def _html(text: str) -> str:
    return escape(sendable(text), quote=False)


def choices_of(config: str) -> set[str]:
    """The labels that a labelling page offers, as they stand on it; none if it is not ours."""
    try:
        root = ElementTree.fromstring(config)  # noqa: S314 - expat reads no files and no network
    except ElementTree.ParseError:
        return set()
    return {str(choice.get("value")) for choice in root.iter("Choice")}
