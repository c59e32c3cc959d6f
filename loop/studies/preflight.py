"""What can be known before the LLM is paid and people are asked: faults, and what will happen.

Later stages refuse what is wrong as well, but by then it has cost something.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from loop.campaign.config import Config
from loop.campaign.import_texts import (
    import_texts,
    misfits,
    near_twins_line,
    splits_of,
    twins_in_pool,
)
from loop.campaign.store import Store
from loop.errors import ConfigError, LoopError, ReviewerError, counted
from loop.llm.cost_plan import Plan, plan_annotation
from loop.ports import MIN_DEV, SourceText
from loop.student.cross_fit import FOLDS
from loop.student.learning_rate import EMBEDDED, config_folder, fitting_rate, is_hub_name
from loop.student.steps import ENOUGH_STEPS, fitting_steps, steps_of
from strategies.estimate import share_interval

FEW_KNOWN = 50
"""Test texts with a known label below which accuracy's interval is wider than 20 points."""
FEW_OF_CLASS = 5
ANSWER_S = 15.0
"""Seconds that a person is taken to need for a text, before anybody has answered."""
NO_VALUE = ("nan", "<na>", "n/a", "#n/a", "null", "nat")
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class Preflight:
    """What is known beforehand.

    Attributes:
        errors: what keeps the campaign from being run to its end.
        warnings: what it will not be able to say, or what it will cost.
        lines: what will happen, for people to read.
    """

    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    lines: tuple[str, ...]


def preflight(
    config: Config,
    rows: Sequence[SourceText],
    annotator: str,
    recorded: Mapping[str, Counter[str]] | None = None,
) -> Preflight:
    """Looks at a campaign that has not begun; stores and asks nothing.

    Args:
        rows: its texts.
        annotator: revision of its LLM, or any name where that is not known yet.
        recorded: column -> how often each label is read from it, of an LLM whose answers are
            recorded.
    """
    errors = [str(exc) for exc in parts_that_fail(config)]
    try:
        splits = splits_of(config, rows)
    except LoopError as exc:
        return Preflight((str(exc), *errors), (), ())
    counts = {split: splits.count(split) for split in ("pool", "test", "dev")}
    without = sum(s == "pool" and not r.gold for r, s in zip(rows, splits, strict=True))
    wrong = [str(exc) for exc in misfits(config, counts, without)]
    if config.raters.ratings_column and config.raters.kind == "recorded":
        column = config.raters.ratings_column
        if not any(r.meta.get(column) for r in rows):
            wrong.append(f"raters.ratings_column {column!r} holds no ratings; name another column.")
    wrong += _unpaid(config)
    plan, twins = None, 0
    told: list[str] = []
    if not wrong:
        with closing(Store("sqlite:///:memory:")) as store:
            store.open_campaign(config.campaign.name, config.label_names)
            import_texts(config, store, rows)
            items = store.stored_texts(config.campaign.name)
            told, twins = [*filter(None, [near_twins_line(items)])], twins_in_pool(items)
            try:
                plan = plan_annotation(config, store, annotator)
            except LoopError as exc:
                wrong.append(str(exc))
    warnings = [*told, *_too_few(config, rows, splits), *_money(config, plan)]
    lines = _will_happen(config, rows, splits, counts, plan, twins, recorded or {})
    return Preflight((*wrong, *errors), tuple(warnings), tuple(lines))


def parts_that_fail(config: Config) -> Iterator[LoopError]:
    """What the campaign file names and is not to be had, as far as this machine can tell."""
    encoder = config.student.encoder
    folder = config_folder(encoder, config.folder)
    if encoder in EMBEDDED:
        pass
    elif folder is None and (encoder.count("/") > 1 or _is_path(encoder)):
        yield ConfigError(f"Encoder folder {encoder} does not exist; check student.encoder.")
    elif folder is None and not is_hub_name(encoder):
        yield ConfigError(_no_model("student.encoder", encoder, "roberta-base"))
    elif (config.folder / encoder).is_dir() and folder and (missing := _missing(folder)):
        yield ConfigError(
            f"Encoder {encoder} cannot be loaded: the folder has no {missing}. Save it with"
            " save_pretrained, model and tokenizer, or choose another student.encoder."
        )
    section = config.annotator
    if section.kind == "vllm" and find_spec("vllm") is None:
        yield ConfigError(
            'annotator.kind = "vllm" needs vLLM, which is not installed: pip install'
            " 'goldloop[vllm]'."
        )
    if config.executor.kind == "ray" and find_spec("ray") is None:
        yield ConfigError(
            'executor.kind = "ray" needs Ray, which is not installed: pip install'
            " 'goldloop[ray]'."
        )
    if section.kind == "local_lm" and _is_path(section.model):
        place = config.folder / section.model
        if not (place / "config.json").is_file():
            yield ConfigError(
                f"annotator.model {section.model} is not a folder with a transformers model (there"
                f" is no config.json)."
            )
    elif (
        section.kind == "local_lm"
        and not is_hub_name(section.model)
        and not (config.folder / section.model).is_dir()
    ):
        yield ConfigError(_no_model("annotator.model", section.model, "smollm2-135m"))
    studio = config.label_studio
    ours = config.people.platform == "label_studio"
    if ours and studio.url != "local" and not os.environ.get(studio.token_env):
        yield ReviewerError(
            f"Set {studio.token_env} to an access token of {studio.url} (Label Studio: Account &"
            " Settings); without it nothing can be sent to people."
        )


def _no_model(key: str, name: str, such: str) -> str:
    return (
        f"{key} {name!r} is neither a folder nor a name that a model on the Hugging Face hub can"
        f" have, such as {such}."
    )


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~"))


def _missing(folder: Path) -> str | None:
    """What a saved encoder must have and this folder has not."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any(folder.glob("*.safetensors")):
        return "safetensors weights (pickled ones are refused, because loading them runs code)"
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return "tokenizer"
    return None


def _too_few(config: Config, rows: Sequence[SourceText], splits: Sequence[str]) -> Iterator[str]:
    """What the known labels cannot tell."""
    known = {
        split: Counter(r.gold for r, s in zip(rows, splits, strict=True) if s == split and r.gold)
        for split in ("pool", "test", "dev")
    }
    n = known["test"].total()
    if 0 < n < FEW_KNOWN:
        low, high = share_interval(0.8, n)
        yield (
            f"Only {n} test text{'s have' if n > 1 else ' has'} a known label, so accuracy will not"
            f" be known well: if 80 % of them are labelled right, the true share is between"
            f" {100 * low:.0f} and {100 * high:.0f} %. To test on more, raise texts.test_frac, or"
            " mark more rows 'test'."
        )
    if known["test"] or known["pool"]:
        for label in config.label_names:
            count, anywhere = known["test"][label], sum(k[label] for k in known.values())
            if n and count < FEW_OF_CLASS:
                more = "" if anywhere > count else f", and only {counted(anywhere, 'text')} in all"
                yield (
                    f"Label {label!r} has only {count} of the {n} known test texts{more}: too few"
                    " to say how well it is found."
                )
    if config.student.checkpoint == "best" and known["dev"].total() < MIN_DEV:
        yield (
            f'student.checkpoint = "best" needs {MIN_DEV} known labels in split dev; there are'
            f" {known['dev'].total()}, so the last epoch is kept."
        )
    pool, student = sum(split == "pool" for split in splits), config.student
    batch_size, epochs = fitting_steps(pool)
    steps = steps_of(pool, student.batch_size, student.epochs)
    if steps < min(ENOUGH_STEPS, steps_of(pool, batch_size, epochs)):
        yield (
            f"A student takes {steps} step{'s' if steps > 1 else ''} ({pool} texts, epochs ="
            f" {student.epochs}, batch_size = {student.batch_size}): too few to learn rare labels."
            f" Set student.batch_size = {batch_size} and student.epochs = {epochs}."
        )
    used = config.people.check_frac or {"random", "all_gold"} & set(config.student.references)
    if (n := known["pool"].total()) and config.raters.kind == "people" and not used:
        texts = "texts to label have a known label" if n > 1 else "text to label has a known label"
        remote = config.source.startswith("hf:")
        source = config.source if remote else os.path.relpath(config.source)
        yield (
            f"{n:,} {texts}, and people may be asked about them all the same. To use these labels"
            f" as gold: `goldloop import-labels {shlex.quote(source)} --label-column"
            f" {shlex.quote(str(config.texts.gold_column))}`."
        )
    lower = Counter(name.casefold() for name in config.label_names)
    for name in config.label_names:
        if lower[name.casefold()] > 1:
            yield f"Label {name!r} differs from another one in its case alone; people may mix them."
        if name.lower() in NO_VALUE or name == "None":
            yield (
                f"Label {name!r} is what tools write into cells without a value. If it stands for"
                " texts without a label, empty those cells and take it out of [[labels]]."
            )
    if len((text := config.texts.text_column).split()) > 5 and text[-1] not in "?:":
        yield (
            f"texts.text_column = {_excerpt(text)} looks like a text. If the file has no line of"
            " column names, its first text is lost: put such a line at its top."
        )
    if (column := config.texts.gold_column) in config.label_names:
        yield (
            f"texts.gold_column = {column!r} is a label's name as well. If the file has no line of"
            " column names, its first text is lost: put such a line at its top."
        )


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")


def _unpaid(config: Config) -> Iterator[str]:
    answers, budget = config.people.panel.first, config.budget
    price = answers * budget.usd_per_label
    if budget.usd is not None and price > budget.usd:
        yield (
            f"budget.usd = {budget.usd:.2f} does not pay for a single text, which needs {answers}"
            f" answer{'s' * (answers > 1)} at ${budget.usd_per_label:,.2f}. Raise budget.usd, or"
            " lower budget.usd_per_label or people.overlap."
        )


def _answers(config: Config, texts: int) -> int:
    """Answers that people are asked for, those to hidden checks included."""
    return (texts + config.people.checks_for(texts)) * config.people.panel.first


def _money(config: Config, plan: Plan | None) -> Iterator[str]:
    budget = config.budget
    if budget.usd is None or plan is None:
        return
    people = _answers(config, budget.labels) * budget.usd_per_label
    if plan.usd_uncached + people > budget.usd:
        yield (
            f"budget.usd = {budget.usd:.2f} does not pay for everything: the LLM may cost"
            f" ${plan.usd_uncached:,.2f} and {budget.labels} texts ${people:,.2f}. goldloop stops"
            " when the money is spent; raise budget.usd or lower budget.labels."
        )


def _will_happen(
    config: Config,
    rows: Sequence[SourceText],
    splits: Sequence[str],
    counts: Mapping[str, int],
    plan: Plan | None,
    twins: int,
    recorded: Mapping[str, Counter[str]],
) -> Iterator[str]:
    tested = sum(s == "test" and bool(r.gold) for r, s in zip(rows, splits, strict=True))
    yield (
        f"Texts:    {counts['pool']:,} to label, {counts['test']:,} to test on ({tested:,} with a"
        f" known label), {counts['dev']:,} for examples (dev)"
    )
    if twins:
        yield (
            f"Twins:    {twins:,} of the texts to label say nearly the same as another one (case,"
            " punctuation, links and user names apart); people may be asked about both, so remove"
            " copies that you do not need"
        )
    gold = Counter(row.gold for row in rows if row.gold)
    if gold:
        yield f"Gold:     {_mix(config, gold)}"
    for column, said in recorded.items():
        yield f"LLM:      no calls; column {column!r}: {_mix(config, said)}"
    if plan is not None and config.annotator.kind != "recorded":
        yield (
            f"LLM:      {plan.calls:,} calls, about {plan.tokens:,} tokens,"
            f" ${plan.usd_uncached:,.2f} at most; `goldloop run` shows how"
            " long it takes"
        )
    batch = min(config.rounds.batch_size, counts["pool"])
    most = min(config.rounds.rounds * batch, config.budget.labels, counts["pool"])
    answers = _answers(config, most)
    money = (
        f", ${answers * config.budget.usd_per_label:,.2f}" if config.budget.usd_per_label else ""
    )
    yield (
        f"People:   {counted(config.rounds.rounds, 'round')} of {counted(batch, 'text')},"
        f" {most} in all: {counted(answers, 'answer')}, about"
        f" {counted(max(1, round(answers * ANSWER_S / 60)), 'minute')} at {ANSWER_S:.0f}"
        f" seconds each{money}"
    )
    student = config.student
    rate = "" if student.lr is None else f", learning rate {student.lr:g}"
    why = f", which {config.lr_why} (student.lr sets another)" if config.lr_why else ""
    if student.lr is not None and not config.lr_why:
        fits = fitting_rate(student.encoder, config_folder(student.encoder, config.folder))
        why = f" ({fits.value:g} {fits.why})" if fits.value != student.lr else ""
    arms = 1 + ("random" in student.references)
    once = len(set(student.references) - {"random"})
    judges = f", {FOLDS} more of judges" if config.strategy.judged else ""
    compared = f", and {once * student.seeds} once to compare with" if once else ""
    yield (
        f"Students: {student.encoder}{rate}{why}; {arms * student.seeds} trainings a round{judges}"
        f"{compared}; {student.epochs} epochs each"
    )


def _mix(config: Config, counts: Counter[str]) -> str:
    """``yes 60 %, no 40 % of 120 labels``, what is no label of the campaign last."""
    total = counts.total()
    named = [*config.label_names, *sorted(set(counts) - set(config.label_names))]
    shown = [
        f"{' '.join(name.split()) or 'no label'} {100 * counts[name] / total:.0f} %"
        for name in named[:12]
        if total
    ]
    more = f", {len(named) - 12} more" if len(named) > 12 else ""
    return f"{', '.join(shown)}{more} of {total:,} labels"
