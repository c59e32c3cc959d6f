"""The classifier that users take away: one model made of the last finished round's seeds.

Three candidates are built: the best seed, the average of all seeds' weights (a soup), and a model
distilled from the mean of the seeds' probabilities. Labels of the dev split, which no strategy
ever sees, say which of them are good enough; the most stable of those is taken.

    good enough   log-loss on dev, after a temperature of its own, within one standard error (or
                  0.01) of the best candidate's, paired over texts
    most stable   agreement on dev with the ensemble of all seeds, which is what a single seed
                  scatters around

With fewer than ``MIN_DEV`` dev labels nothing is compared: the distilled model is taken, since it
needs no label to be chosen, and stays without a temperature.

Whatever is trained is saved as it ends, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from loop.arms import LabelSet, fit_seeds, label_set_of, last_models, loop_labels, seeds_of
from loop.context import Context
from loop.encoder import RECORD, load_classifier, load_tokenizer, save_model
from loop.errors import StageError, StudentError
from loop.files import remove_leftovers
from loop.held_out import evaluation_items
from loop.inference import predict
from loop.measure import truth_of
from loop.model_card import CardFacts, model_card
from loop.model_weights import average, build_in_temperature
from loop.ports import FloatArray, IntArray, SeedResult
from loop.round import VALIDATION, open_campaign
from loop.stability import churn, measure
from loop.store import Item, Round
from strategies.temperature import fit_temperature, log_losses, with_temperature

MIN_DEV = 20
"""Dev labels from which candidates are compared and a temperature is fitted."""
ALIKE = 0.01
"""Log-losses that differ by less, in nats a text, count as equal however sure the difference is."""
KIND = "final model"
SEEDS = "seeds"
"""Folder inside the final model's that holds the seeds' models."""


@dataclass(frozen=True)
class Judged:
    """A candidate as the dev split sees it.

    Attributes:
        agreement: share of dev texts on which it says what the ensemble says.
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
class Made:
    """A final model in its place.

    Attributes:
        news: sentences for the user.
    """

    folder: Path
    choice: Choice
    news: tuple[str, ...] = field(default=())


def make_final_model(
    ctx: Context, folder: Path, *, keep_seeds: bool = True, force: bool = False
) -> Made:
    """Builds the final model, or finds that it is there already.

    Args:
        folder: where it goes; a final model that lies there is replaced.
        keep_seeds: keep the seeds' models beside it; ``goldloop predict`` needs them to say how
            stable each label is.
        force: build anew what is there and up to date.
    Raises:
        StageError: no round is finished yet.
        StoreError: the campaign file's labels are not those that the campaign was begun with.
        StudentError: the folder holds something else, or training or saving failed.
    """
    round_ = _last_finished(ctx)
    open_campaign(ctx)  # checks the labels
    _check_place(folder)
    evaluated = evaluation_items(ctx)
    labels = loop_labels(ctx, round_)
    label_set = label_set_of(ctx, labels, evaluated)
    dev = ctx.store.items(ctx.name, "dev")
    key = _key(label_set, [i.id for i in dev], keep_seeds)
    if not force and (record := _record(folder)).get("key") == key and _whole(folder, record):
        choice = _choice_in(record)
        return Made(folder, choice, (f"{folder} is up to date: {choice.name}, {choice.why}.",))
    remove_leftovers(folder)
    work = ctx.config.out / "models" / f"final-{label_set}"
    news: list[str] = []
    seeds = _seed_models(ctx, round_, labels, label_set, evaluated, work, news)
    candidates = _candidates(ctx, round_, labels, evaluated, dev, seeds, work, news)
    choice = candidates.choice
    chosen = candidates.folders[choice.name]
    kept = seeds if keep_seeds else {}
    _assemble(ctx, round_, folder, chosen, choice, kept, key, evaluated)
    shutil.rmtree(work, ignore_errors=True)
    with ctx.store.transaction() as session:
        ctx.store.log(session, ctx.name, "model", "saved", round=round_.number, chosen=choice.name)
    taken = f"{choice.name[:1].upper()}{choice.name[1:]} is taken: {choice.why}."
    return Made(folder, choice, (*news, taken))


# what there is


def _last_finished(ctx: Context) -> Round:
    rounds = [r for r in ctx.store.rounds(ctx.name) if r.stage == "done" and r.number != VALIDATION]
    if not rounds:
        raise StageError(
            "No round is finished yet, so there are no students to make a final model of; run"
            " `goldloop run` first."
        )
    return rounds[-1]


def _check_place(folder: Path) -> None:
    """Refuses to replace what ``goldloop model`` did not write."""
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and _record(folder).get("kind") != KIND:
        raise StudentError(
            f"{folder} exists and is no final model of goldloop's; it is left alone. Name another"
            " folder, or move it away."
        )


def _record(folder: Path) -> dict[str, Any]:
    """What goldloop noted in a model's folder; empty where nothing readable is there."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _whole(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the model and every seed that the record names are there and not cut short."""
    for place in [folder, *(folder / name for name in record.get("seeds", ()))]:
        weights = list(place.glob("*.safetensors"))
        if not weights or not (place / "config.json").is_file():
            return False
        try:
            for file in weights:
                with safe_open(file, framework="pt"):  # compares its length with its header
                    pass
        except (OSError, SafetensorError):
            return False
    return True


def _key(label_set: str, dev: Sequence[str], keep_seeds: bool) -> str:
    parts = json.dumps([label_set, list(dev), keep_seeds, MIN_DEV])
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _choice_in(record: dict[str, Any]) -> Choice:
    return Choice(str(record.get("chosen")), str(record.get("why")), ())


# the seeds


def _seed_models(
    ctx: Context,
    round_: Round,
    labels: LabelSet,
    label_set: str,
    evaluated: Sequence[Item],
    work: Path,
    news: list[str],
) -> dict[int, Path]:
    """Every seed's saved model; those that the round did not keep are trained again."""
    runs = [
        r
        for r in ctx.store.runs(ctx.name)
        if (r.round_id, r.arm, r.label_set) == (round_.id, "loop", label_set)
    ]
    folders: dict[int, Path] = {}
    for run in runs:
        folder = ctx.config.out / run.model_path if run.model_path else None
        if folder is not None and _is_seed(folder, run.seed, ctx.student.revision):
            folders[run.seed] = folder
    seeds = seeds_of(ctx, round_)
    places = {seed: work / f"seed-{seed}" for seed in seeds}
    for seed in seeds:
        if seed not in folders and _is_seed(places[seed], seed, ctx.student.revision):
            folders[seed] = places[seed]
    missing = [seed for seed in seeds if seed not in folders]
    if missing:
        stored = {run.seed: np.array(run.predictions, dtype=np.int64) for run in runs}
        changed: list[float] = []

        def compare(result: SeedResult) -> None:
            before = stored.get(result.seed)
            if before is not None and len(before) == len(result.probs) and len(before):
                changed.append(float((result.probs.argmax(axis=1) != before).mean()))

        fit_seeds(
            ctx,
            labels,
            evaluated,
            missing,
            what=f"Training {len(missing)} seeds of round {round_.number} again",
            keep={seed: places[seed] for seed in missing},
            on_seed=compare,
            start=last_models(ctx, round_),
        )
        folders |= {seed: places[seed] for seed in missing}
        if changed and max(changed) > 0:
            news.append(
                "Seeds trained again answer otherwise than in the round on"
                f" {100 * max(changed):.1f} % of the test texts at most: machine, device or"
                " versions are not the same as then."
            )
    return {seed: folders[seed] for seed in seeds}


def _is_seed(folder: Path, seed: int, revision: str) -> bool:
    record = _record(folder)
    mine = (record.get("seed"), record.get("student")) == (seed, revision)
    return mine and _whole(folder, {})


# the candidates


@dataclass(frozen=True)
class _Candidates:
    folders: dict[str, Path]
    choice: Choice


def _candidates(
    ctx: Context,
    round_: Round,
    labels: LabelSet,
    evaluated: Sequence[Item],
    dev: Sequence[Item],
    seeds: dict[int, Path],
    work: Path,
    news: list[str],
) -> _Candidates:
    index = {name: c for c, name in enumerate(ctx.config.label_names)}
    y: IntArray = np.array(
        [index[i.known_label] if i.known_label else -1 for i in dev], dtype=np.int64
    )
    enough = int((y >= 0).sum()) >= MIN_DEV
    pool = _teachable(labels, evaluated)
    by_id = {i.id: i.text for i in ctx.store.items(ctx.name, "pool")}
    dev_texts = [i.text for i in dev]
    texts = [*dev_texts, *(by_id[labels.ids[row]] for row in pool)]

    with ctx.show("Asking every seed", len(seeds) * len(texts)) as progress:
        probs = np.stack([_ask(ctx, f, texts, progress) for f in seeds.values()])
    on_dev, on_pool = probs[:, : len(dev)], probs[:, len(dev) :].mean(axis=0)
    distilled = _distil(ctx, round_, labels, pool, on_pool, dev, len(seeds), work)
    folders = {"the distilled model": distilled[0]}
    if len(distilled) > 1 and dev:
        pair = np.stack([_ask(ctx, f, dev_texts).argmax(axis=1) for f in distilled])
        news.append(
            f"Two distilled models disagree on {100 * churn(pair):.1f} % of the dev texts, two"
            f" seeds on {100 * churn(on_dev.argmax(axis=2)):.1f} %."
        )
    if not enough:
        return _Candidates(folders, _without_dev(int((y >= 0).sum())))

    soup = work / "soup"
    if not _whole(soup, {}):
        one = next(iter(seeds.values()))
        save_model(average(list(seeds.values())), load_tokenizer(one), soup, _record(one))
    known = y >= 0
    best = _best_seed(list(seeds), on_dev[:, known], y[known], len(index))
    name = f"seed {best}"
    folders = {name: seeds[best], "the soup": soup} | folders
    asked = {
        name: on_dev[list(seeds).index(best)],
        "the soup": _ask(ctx, soup, dev_texts),
        "the distilled model": _ask(ctx, distilled[0], dev_texts),
    }
    return _Candidates(folders, choose(asked, on_dev.mean(axis=0), y, len(index)))


def _ask(ctx: Context, folder: Path, texts: Sequence[str], progress: Any = None) -> FloatArray:
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
    s: int,
    work: Path,
) -> list[Path]:
    """One model trained on the seeds' mean probabilities, and a second one to compare it with.

    Gold labels stay what people said; every other text learns what the seeds say of it, also
    where repair had left it out. Without dev texts nothing could be compared, so one is trained.

    Source: Hinton et al. 2015, Distilling the Knowledge in a Neural Network.
    """
    sources = {t.item_id: t.source for t in ctx.store.training_labels(round_.id or 0)}
    is_gold = np.array([sources[labels.ids[row]] == "gold" for row in pool])
    rows = np.asarray(pool, dtype=np.int64)
    y = np.where(is_gold[:, None], labels.y[rows], teacher)
    lesson = LabelSet([labels.ids[row] for row in pool], y, np.ones(len(pool)))
    first = seeds_of(ctx, round_)[-1] + 1  # no seed of the round trains it
    seeds = [first, first + 1] if dev else [first]
    places = {seed: work / f"distilled-{seed}" for seed in seeds}
    missing = [s for s in seeds if not _is_seed(places[s], s, ctx.student.revision)]
    if missing:
        fit_seeds(
            ctx,
            lesson,
            dev,
            missing,
            what=f"Distilling {s} seeds into one",
            keep={seed: places[seed] for seed in missing},
            on_seed=lambda _result: None,
        )
    return [places[seed] for seed in seeds]


def _best_seed(seeds: Sequence[int], probs: FloatArray, y: IntArray, k: int) -> int:
    """The seed with the highest macro-F1; ties go to the lower log-loss."""
    scores = [(_macro_f1(p, y, k), -float(log_losses(p, y).mean())) for p in probs]
    return seeds[max(range(len(seeds)), key=lambda row: scores[row])]


def choose(probs: dict[str, FloatArray], ensemble: FloatArray, y: IntArray, k: int) -> Choice:
    """The most stable of the candidates that are good enough; see the head of this file.

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
    for name in names:
        worse = losses[name] - losses[best]
        error = float(worse.std(ddof=1)) / len(worse) ** 0.5 if len(worse) > 1 else 0.0
        judged[name] = Judged(
            name,
            float((probs[name].argmax(axis=1) == ensemble.argmax(axis=1)).mean()),
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
        1.0,
        _macro_f1(ensemble[known], y[known], k),
        float(loss.mean()),
        temperature,
    )
    why = (
        f"of {len(able)} candidates that are good enough on {int(known.sum())} dev labels it agrees"
        f" most with the ensemble of all seeds ({100 * (taken.agreement or 0):.1f} % of the dev"
        " texts)"
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
    found = measure(probs.argmax(axis=1)[None], y, k, bootstrap=0, rng=rng).macro_f1
    return found.value if found else 0.0


# into its place


def _assemble(
    ctx: Context,
    round_: Round,
    folder: Path,
    chosen: Path,
    choice: Choice,
    seeds: dict[int, Path],
    key: str,
    evaluated: Sequence[Item],
) -> None:
    """Writes the model, its card and the seeds' models: all of it, or nothing."""
    model, tokenizer = load_classifier(chosen), load_tokenizer(chosen)
    tokenizer.model_max_length = int(_record(chosen)["max_tokens"])
    built_in = choice.temperature == 1.0 or build_in_temperature(model, choice.temperature)
    own = {f"seed {seed}": f"{SEEDS}/seed-{seed}" for seed in seeds}
    trained = _record(chosen)
    told = ("labels", "max_tokens", "long_texts", "student", "precision")
    record = {name: trained[name] for name in told} | {
        "kind": KIND,
        "key": key,
        "campaign": ctx.name,
        "round": round_.number,
        "chosen": choice.name,
        "why": choice.why,
        "temperature": choice.temperature,
        "temperature_built_in": built_in,
        "seeds": list(own.values()),
        "same_as": own.get(choice.name),
        "dev": [asdict(j) for j in (*choice.judged, choice.ensemble) if j is not None],
    }
    names = ctx.config.label_names
    card = model_card(
        CardFacts(
            config=ctx.config,
            record=record,
            learned=[
                (names[int(np.argmax(t.probs))], t.source)
                for t in ctx.store.training_labels(round_.id or 0)
            ],
            round_=round_,
            rounds=sum(
                r.stage == "done" and r.number != VALIDATION for r in ctx.store.rounds(ctx.name)
            ),
            own=_own_test(ctx, round_, chosen, evaluated),
            dev_known=sum(1 for i in ctx.store.items(ctx.name, "dev") if i.known_label),
        )
    )

    def add(part: Path) -> None:
        (part / "README.md").write_text(card, encoding="utf-8")
        for seed, source in seeds.items():
            target = part / SEEDS / f"seed-{seed}"
            target.mkdir(parents=True)
            for file in source.iterdir():
                _link_or_copy(file, target / file.name)

    save_model(model, tokenizer, folder, record, add)


def _own_test(
    ctx: Context, round_: Round, chosen: Path, evaluated: Sequence[Item]
) -> dict[str, Any] | None:
    """The chosen model's accuracy and macro-F1 where the round measured its seeds'."""
    truth = truth_of(ctx, evaluated)
    known = truth.y >= 0
    if not known.any():
        return None
    texts = [i.text for i, there in zip(evaluated, known, strict=True) if there]
    predictions = _ask(ctx, chosen, texts).argmax(axis=1)[None]
    found = measure(
        predictions,
        truth.y[known],
        len(ctx.config.labels),
        weight=truth.weight[known],
        rng=np.random.default_rng([round_.seed, round_.number, 11]),
    ).to_json()
    return {name: found[name] for name in ("accuracy", "macro_f1")}


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for the same bytes where the file system knows that; models are large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
