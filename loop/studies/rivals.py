"""Other annotators on the validation sample: the same texts, the same people, side by side.

A rival is another campaign file, of which only ``[annotator]`` and ``[prompt]`` are read. Its votes
lie beside the campaign's own, under a revision of their own, and decide nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loop.campaign.config import Config, load
from loop.campaign.context import Context
from loop.campaign.tables import RIVAL_MARK, VALIDATION, ItemKey
from loop.chance import stream
from loop.errors import ConfigError
from loop.llm.ask import answers_of, take_votes
from loop.llm.prompts import freeze_variants
from loop.llm.votes import read_votes
from loop.ports import Annotator, ClassProbs, IntArray, Lots, TextItem
from loop.prompt import PromptVariant
from strategies.compare import Compared, compare


@dataclass(frozen=True)
class Rival:
    """One annotator of the comparison.

    Attributes:
        name: as it is shown.
        compared: its labels against people's, on the sample.
    """

    name: str
    compared: Compared


class Renamed:
    """An annotator whose votes are kept apart from those of the same model under other prompts."""

    def __init__(self, annotator: Annotator, prompt: str) -> None:
        self._annotator = annotator
        self._prompt = prompt

    @property
    def revision(self) -> str:
        """The annotator's own, and a hash of how it is asked."""
        digest = hashlib.sha256(self._prompt.encode()).hexdigest()[:8]
        return f"{self._annotator.revision}{RIVAL_MARK}{digest}"

    def annotate(self, variant: PromptVariant, items: Sequence[TextItem]) -> ClassProbs:
        """As the annotator itself."""
        return self._annotator.annotate(variant, items)

    def annotate_stream(
        self, variant: PromptVariant, lots: Lots
    ) -> Iterator[tuple[Sequence[TextItem], ClassProbs]]:
        """As the annotator itself."""
        yield from answers_of(self._annotator, variant, lots)

    def most_tokens(
        self, variant: PromptVariant, items: Sequence[TextItem]
    ) -> tuple[IntArray, IntArray]:
        """As the annotator itself."""
        return self._annotator.most_tokens(variant, items)

    def close(self) -> None:
        """As the annotator itself."""
        self._annotator.close()


def rival_config(config: Config, file: Path) -> Config:
    """The campaign with another file's annotator and prompt.

    Raises:
        ConfigError: the file is wrong, or has other labels.
    """
    other = load(file)
    if other.label_names != config.label_names:
        raise ConfigError(
            f"{file} has the labels {', '.join(other.label_names)}, the campaign"
            f" {', '.join(config.label_names)}; annotators are compared on the same labels."
        )
    return config.model_copy(update={"annotator": other.annotator, "prompt": other.prompt})


def renamed(config: Config, annotator: Annotator) -> Renamed:
    """The rival under its own revision; what only changes how answers are read does not count."""
    read = {"calibrate", "class_prior", "calls_per_item"}
    return Renamed(annotator, config.prompt.model_dump_json(exclude=read))


def ask_rival(ctx: Context, config: Config, annotator: Annotator) -> None:
    """Takes the votes on the validation sample that are missing.

    Raises:
        AnnotatorError: nothing can be answered, or the cap is reached.
    """
    items = _sample(ctx)
    variants = freeze_variants(config, ctx.store, annotator.revision)
    with ctx.show(f"Labels of {annotator.revision}", len(items) * len(variants)) as progress:
        take_votes(config, ctx.store, annotator, items, variants, progress=progress)


def side_by_side(ctx: Context, rivals: Sequence[tuple[str, Config, str]]) -> list[Rival]:
    """The campaign's own annotator, and after it its rivals, on the sample's gold.

    All labels are read as they would be if the sample were the whole pool.

    Args:
        ctx: the campaign.
        rivals: name, configuration and revision of each.
    """
    gold = ctx.store.gold(ctx.name)
    items = [item for item in _sample(ctx) if item.id in gold]
    index = ctx.config.label_index
    truth = np.array([index[gold[item.id].label] for item in items], dtype=np.int64)
    everybody = [("this campaign", ctx.config, ctx.annotator.revision), *rivals]
    labels = np.stack([_labels(ctx, config, revision, items) for _, config, revision in everybody])
    compared = compare(labels, truth, len(index), rng=stream("rivals", ctx.config.rounds.seed))
    return [Rival(name, one) for (name, _, _), one in zip(everybody, compared, strict=True)]


def rival_lines(rivals: Sequence[Rival], labels: Sequence[str]) -> list[str]:
    """The comparison for people to read."""
    from loop.studies.validate import shown

    lines = ["Annotators side by side on the same sample, paired with the first:"]
    width = max(len(label) for label in labels)
    for rival in rivals:
        q = rival.compared
        lines.append(
            f"  {rival.name}: accuracy {shown(q.accuracy)}, macro-F1 {shown(q.macro_f1)},"
            f" KL {q.kl.value:.3f} ({q.kl.low:.3f} to {q.kl.high:.3f})"
            + (f", {q.unanswered} without an answer" if q.unanswered else "")
        )
        if q.accuracy_gain and q.macro_f1_gain:
            gains = (q.accuracy_gain, q.macro_f1_gain)
            told = [
                f"{100 * e.value:+.1f} ({100 * e.low:+.1f} to {100 * e.high:+.1f})" for e in gains
            ]
            lines.append(f"    against the first: accuracy {told[0]}, macro-F1 {told[1]}")
        lines += [
            f"    {label:<{width}}  precision {shown(precision)}, recall {shown(recall)}"
            for label, precision, recall in zip(labels, q.precision, q.recall, strict=True)
        ]
    return lines


def _sample(ctx: Context) -> list[ItemKey]:
    rounds = ctx.store.rounds(ctx.name)
    chosen = {
        review.item_id
        for round_ in rounds
        if round_.number == VALIDATION
        for review in ctx.store.reviews(ctx.name, round_.id)
    }
    return [key for key in ctx.keys("pool") if key.id in chosen]


def _labels(ctx: Context, config: Config, revision: str, items: Sequence[ItemKey]) -> IntArray:
    votes = read_votes(config, ctx.store, revision, items)
    return np.where(votes.answered, votes.y_llm, -1)
