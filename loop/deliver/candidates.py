"""The candidates for the final model, and which of them is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loop.campaign.context import Context
from loop.campaign.tables import Item, Round, round_id
from loop.deliver.saved_models import average, is_seed_model, is_whole, record_of
from loop.measure.metric import one_class
from loop.measure.stability import churn, measure
from loop.ports import FloatArray, IntArray
from loop.student.encoder_files import load_tokenizer, save_model
from loop.student.inference import predict
from loop.training_sets import LabelSet, fit_seeds, seeds_of
from strategies.calibrate import fit_temperature, log_losses, with_temperature

AVERAGE = "the average of all seeds' weights"
MIN_DEV = 20
"""Dev labels from which candidates are compared and a temperature is fitted."""
ALIKE = 0.01
"""Log-losses that differ by less, in nats a text, count as equal however sure the difference is."""


@dataclass(frozen=True)
class Judged:
    """A candidate as the dev split sees it.

    Attributes:
        agreement: share of dev texts on which it says what the ensemble says; None where that
            says one class for all of them, so that agreement means nothing.
        macro_f1: None without enough dev labels, like the two below.
        log_loss: mean, at its own temperature.
        temperature: fitted to the dev labels.
        good_enough: whether its log-loss is within one standard error of the best.
    """

    name: str
    agreement: float | None
    macro_f1: float | None = None
    log_loss: float | None = None
    temperature: float | None = None
    good_enough: bool = True


@dataclass(frozen=True)
class Choice:
    """Which candidate is taken, and why.

    Attributes:
        ensemble: the mean of the seeds, for comparison; it cannot be taken, being many models.
    """

    name: str
    why: str
    judged: tuple[Judged, ...]
    ensemble: Judged | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class Candidates:
    """The candidates' folders by name, and the choice among them."""

    folders: dict[str, Path]
    choice: Choice


def build_candidates(
    ctx: Context,
    round_: Round,
    labels: LabelSet,
    evaluated: Sequence[Item],
    dev: Sequence[Item],
    seeds: dict[int, Path],
    work: Path,
    news: list[str],
) -> Candidates:
    """Builds the candidates that are not there yet, and chooses."""
    index = ctx.config.label_index
    y: IntArray = np.array(
        [index[i.known_label] if i.known_label else -1 for i in dev], dtype=np.int64
    )
    enough = int((y >= 0).sum()) >= MIN_DEV
    pool = _teachable(labels, evaluated)
    by_id = ctx.store.texts([labels.ids[row] for row in pool])
    dev_texts = [i.text for i in dev]
    texts = [*dev_texts, *(by_id[labels.ids[row]] for row in pool)]

    with ctx.show("Asking every seed", len(seeds) * len(texts)) as progress:
        probs = np.stack([ask_model(ctx, f, texts, progress) for f in seeds.values()])
    on_dev, on_pool = probs[:, : len(dev)], probs[:, len(dev) :].mean(axis=0)
    distilled = _distil(ctx, round_, labels, pool, on_pool, dev, len(seeds), work)
    folders = {"the distilled model": distilled[0]}
    if len(distilled) > 1 and dev and not one_class(on_dev.argmax(axis=2)):
        pair = np.stack([ask_model(ctx, f, dev_texts).argmax(axis=1) for f in distilled])
        news.append(
            f"Two distilled models disagree on {100 * churn(pair):.1f} % of the dev texts, two"
            f" seeds on {100 * churn(on_dev.argmax(axis=2)):.1f} %."
        )
    if not enough:
        return Candidates(folders, _without_dev(int((y >= 0).sum())))

    soup = work / "soup"
    if not is_whole(soup, {}):
        one = next(iter(seeds.values()))
        save_model(average(list(seeds.values())), load_tokenizer(one), soup, record_of(one))
    known = y >= 0
    best = _best_seed(list(seeds), on_dev[:, known], y[known], len(index))
    name = f"seed {best}"
    folders = {name: seeds[best], AVERAGE: soup} | folders
    asked = {
        name: on_dev[list(seeds).index(best)],
        AVERAGE: ask_model(ctx, soup, dev_texts),
        "the distilled model": ask_model(ctx, distilled[0], dev_texts),
    }
    return Candidates(folders, choose(asked, on_dev.mean(axis=0), y, len(index)))


def ask_model(ctx: Context, folder: Path, texts: Sequence[str], progress: Any = None) -> FloatArray:
    """(n, k) probabilities that a saved model gives to n texts."""
    section = ctx.config.student
    extra = {} if progress is None else {"progress": progress}
    return predict(folder, texts, device=section.device, precision=section.precision, **extra)


def _teachable(labels: LabelSet, evaluated: Sequence[Item]) -> list[int]:
    """Rows that a distilled model may learn from: all but those that accuracy is measured on."""
    held_out = {i.id for i in evaluated}
    return [row for row, item in enumerate(labels.ids) if item not in held_out]


def _distil(
    ctx: Context,
    round_: Round,
    labels: LabelSet,
    pool: Sequence[int],
    teacher: FloatArray,
    dev: Sequence[Item],
    n_seeds: int,
    work: Path,
) -> list[Path]:
    """One model trained on the seeds' mean probabilities, and a second one to compare it with.

    Gold labels stay what people said; every other text learns what the seeds say of it, also
    where repair had left it out. Without dev texts nothing could be compared, so one is trained.

    Source: Hinton et al. 2015, Distilling the Knowledge in a Neural Network.
    """
    sources = {t.item_id: t.source for t in ctx.store.training_labels(round_id(round_))}
    is_gold = np.array([sources[labels.ids[row]] == "gold" for row in pool])
    rows = np.asarray(pool, dtype=np.int64)
    y = np.where(is_gold[:, None], labels.y[rows], teacher)
    lesson = LabelSet([labels.ids[row] for row in pool], y, np.ones(len(pool)))
    first = seeds_of(ctx, round_)[-1] + 1  # no seed of the round trains it
    seeds = [first, first + 1] if dev else [first]
    places = {seed: work / f"distilled-{seed}" for seed in seeds}
    missing = [s for s in seeds if not is_seed_model(places[s], s, ctx.student.revision)]
    if missing:
        fit_seeds(
            ctx,
            lesson,
            dev,
            missing,
            what=f"Distilling {n_seeds} seeds into one",
            keep={seed: places[seed] for seed in missing},
            on_seed=lambda _result: None,
        )
    return [places[seed] for seed in seeds]


def _best_seed(seeds: Sequence[int], probs: FloatArray, y: IntArray, k: int) -> int:
    """The seed with the highest macro-F1; ties go to the lower log-loss."""
    scores = [(_macro_f1(p, y, k), -float(log_losses(p, y).mean())) for p in probs]
    return seeds[max(range(len(seeds)), key=lambda row: scores[row])]


def choose(probs: dict[str, FloatArray], ensemble: FloatArray, y: IntArray, k: int) -> Choice:
    """The most stable of the candidates that are good enough; see the head of ``final_model``.

    Args:
        probs: by name, (n, k) on the dev texts.
        ensemble: (n, k) mean of the seeds.
        y: (n,) classes, -1 where unknown; at least one is known.
    """
    known = y >= 0
    names = list(probs)
    temperatures = {name: fit_temperature(probs[name][known], y[known]) for name in names}
    losses = {
        name: log_losses(with_temperature(probs[name][known], temperatures[name]), y[known])
        for name in names
    }
    best = min(names, key=lambda name: float(losses[name].mean()))
    judged = {}
    together_says = ensemble.argmax(axis=1)
    alike = one_class(together_says)
    for name in names:
        worse = losses[name] - losses[best]
        error = float(worse.std(ddof=1)) / len(worse) ** 0.5 if len(worse) > 1 else 0.0
        judged[name] = Judged(
            name,
            None if alike else float((probs[name].argmax(axis=1) == together_says).mean()),
            _macro_f1(probs[name][known], y[known], k),
            float(losses[name].mean()),
            temperatures[name],
            good_enough=float(worse.mean()) <= max(error, ALIKE),
        )
    able = [j for j in judged.values() if j.good_enough]
    taken = max(able, key=lambda j: (j.agreement or 0.0, -(j.log_loss or 0.0)))
    temperature = fit_temperature(ensemble[known], y[known])
    loss = log_losses(with_temperature(ensemble[known], temperature), y[known])
    together = Judged(
        "the ensemble",
        None if alike else 1.0,
        _macro_f1(ensemble[known], y[known], k),
        float(loss.mean()),
        temperature,
    )
    why = (
        f"of {len(able)} candidates that are good enough on {int(known.sum())} dev labels it agrees"
        f" most with the ensemble of all seeds ({100 * (taken.agreement or 0):.1f} % of the dev"
        " texts)"
        if len(able) > 1 and not alike
        else f"of {len(able)} candidates that are good enough on {int(known.sum())} dev labels its"
        " log-loss is the lowest; the seeds together give every dev text the same label, so that"
        " agreement with them says nothing"
        if len(able) > 1
        else f"no other candidate is good enough on {int(known.sum())} dev labels"
    )
    return Choice(taken.name, why, tuple(judged.values()), together, temperatures[taken.name])


def _without_dev(known: int) -> Choice:
    why = (
        f"{known} dev labels are too few to compare candidates ({MIN_DEV} are needed), and the"
        " distilled model needs none; its probabilities are not calibrated either"
    )
    return Choice("the distilled model", why, (Judged("the distilled model", None),))


def _macro_f1(probs: FloatArray, y: IntArray, k: int) -> float:
    rng = np.random.default_rng(0)  # not used without a bootstrap
    macro_f1 = measure(probs.argmax(axis=1)[None], y, k, bootstrap=0, rng=rng).macro_f1
    return macro_f1.value if macro_f1 else 0.0
