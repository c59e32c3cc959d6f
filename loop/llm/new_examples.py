"""Other examples for a later round, tried on texts that people labelled before all texts are asked.

What a prompt's examples do to an LLM's labels can be several points either way, and asking every
text again costs as much as the first time. With ``prompt.refresh = "better"`` new prompts therefore
answer first where the right label is known: on the texts that were drawn at random and that people
labelled. Only where they do better there are they frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.campaign.tables import ItemKey
from loop.llm.ask import take_votes
from loop.llm.prompts import freeze_variants, plan_variants, stored_variants
from loop.llm.votes import class_prior, vote_arrays
from loop.ports import Annotator, FloatArray, IntArray, News, Progress
from loop.prompt import PromptVariant

TRIED_FROM = 20  # labels of people on texts drawn at random
FLOOR = 0.02  # no answer counts as less likely: one confident error does not decide

Show = Callable[[str, int], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Tried:
    """New prompts and those in use, on the same n texts of known label.

    Attributes:
        right, before: share of right labels of the new prompts and of those in use.
        gain, error: mean difference of the log-likelihoods of the right labels, and its standard
            error.
    """

    n: int
    right: float
    before: float
    gain: float
    error: float

    @property
    def better(self) -> bool:
        """Whether the new prompts are likelier to be right, by more than a standard error."""
        return self.gain > self.error

    def told(self) -> str:
        """For people to read."""
        line = (
            f"other examples were tried on {self.n} texts that people labelled: the LLM is right on"
            f" {100 * self.right:.0f} % of them, before on {100 * self.before:.0f} %."
        )
        if self.better:
            return f"{line} They answer better, so every text is asked again."
        return f"{line} That is not clearly better, so the prompts stay and no text is asked again."


def prompts_of_round(
    config: Config,
    store: Store,
    annotator: Annotator,
    *,
    round_number: int,
    show: Show,
    say: News,
) -> list[PromptVariant]:
    """The frozen prompts that a round asks; new ones are tried first where the campaign says so.

    Args:
        show: of a title and a number of steps.
        say: told what the trial showed, or why there is none.

    Raises:
        ConfigError: as ``plan_variants``.
        AnnotatorError: as ``take_votes``.
    """
    revision = annotator.revision
    held = stored_variants(config, store, revision)
    fresh = plan_variants(config, store, revision, round_number=round_number)
    knows_all = held and [label.name for label in held[0].labels] == list(config.label_names)
    if config.prompt.refresh != "better" or not knows_all or fresh == held:
        return freeze_variants(config, store, revision, round_number=round_number)
    items, gold = _labelled_at_random(config, store)
    if len(items) < TRIED_FROM:
        say(
            f"Round {round_number}: the prompts stay. Other examples are tried once people have"
            f" labelled {TRIED_FROM} texts that were drawn at random (now {len(items)})."
        )
        return held
    with show(f"Round {round_number}: trying other examples", len(items) * len(fresh)) as progress:
        take_votes(config, store, annotator, items, fresh, progress=progress)
    new, old = (_answers(config, store, revision, items, asked) for asked in (fresh, held))
    tried = compare(new, old, gold)
    if tried is not None:
        say(f"Round {round_number}: {tried.told()}")
    if tried is None or not tried.better:
        return held
    return freeze_variants(config, store, revision, round_number=round_number)


def compare(new: FloatArray, held: FloatArray, gold: IntArray) -> Tried | None:
    """How new prompts do against those in use; None where fewer than two texts have both answers.

    Args:
        new, held: (n, k) class probabilities, a row of NaN where there is no answer.
        gold: (n,) the right classes.
    """
    both = np.isfinite(new).all(axis=1) & np.isfinite(held).all(axis=1)
    n = int(both.sum())
    if n < 2:
        return None
    said, truth = np.stack([new[both], held[both]]), gold[both]
    likely = np.log(np.maximum(said[:, np.arange(n), truth], FLOOR))
    gains = likely[0] - likely[1]
    right, before = (said.argmax(axis=2) == truth).mean(axis=1)
    error = float(gains.std(ddof=1) / np.sqrt(n))
    return Tried(n, float(right), float(before), float(gains.mean()), error)


def _labelled_at_random(config: Config, store: Store) -> tuple[list[ItemKey], IntArray]:
    """The texts of the pool that were drawn at random and have a label of people, and its class.

    Suspects are left out: they were chosen because the prompts in use seemed wrong.
    """
    name, index = config.campaign.name, config.label_index
    audit = {review.item_id for review in store.reviews(name) if review.reason == "audit"}
    gold = store.gold(name)
    items = [key for key in store.keys(name, "pool") if key.id in audit and key.id in gold]
    return items, np.array([index[gold[key.id].label] for key in items], dtype=np.int64)


def _answers(
    config: Config,
    store: Store,
    annotator: str,
    items: Sequence[ItemKey],
    variants: Sequence[PromptVariant],
) -> FloatArray:
    """(n, k) mean answer of the prompts to the items, calibrated on these; NaN without any."""
    from strategies.calibrate import batch_calibrate

    rows = np.array([item.row for item in items], dtype=np.int64)
    column = {variant.hash: i for i, variant in enumerate(variants)}
    probs, _ = vote_arrays(config, store, annotator, rows, column)
    view = probs if config.calibration == "none" else batch_calibrate(probs, class_prior(config))
    there: NDArray[np.bool_] = np.asarray(np.isfinite(view).all(axis=2))
    total = np.where(there[:, :, None], view, 0.0).sum(axis=1)
    count = there.sum(axis=1, keepdims=True)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
