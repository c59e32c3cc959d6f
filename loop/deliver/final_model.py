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

Whatever is trained is saved as it ends, so that the same command continues after an interruption.
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

from loop.campaign.context import Context
from loop.campaign.metrics import Metric, RoundMetrics
from loop.campaign.tables import VALIDATION, Item, Round, round_id
from loop.chance import stream
from loop.deliver.candidates import MIN_DEV, Choice, ask_model, build_candidates
from loop.deliver.model_card import CardFacts, model_card
from loop.deliver.saved_models import (
    build_in_temperature,
    is_seed_model,
    is_whole,
    record_of,
)
from loop.errors import StageError, StudentError
from loop.files import remove_leftovers
from loop.llm.votes import llm_in_words
from loop.measure.collapsed import collapsed_line
from loop.measure.held_out import evaluation_items, truth_of
from loop.measure.stability import measure
from loop.next_round import open_campaign
from loop.ports import OwnAnswers, SeedResult
from loop.student.encoder_files import load_classifier, load_tokenizer, save_model
from loop.student.nothing_learned import nothing_learned
from loop.training_sets import LabelSet, fit_seeds, label_set_of, last_models, loop_labels, seeds_of

KIND = "final model"
SEEDS = "seeds"
"""Folder inside the final model's that holds the seeds' models."""


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
        force: build again what is there and up to date.
    Raises:
        StageError: no round is finished yet, or its students learned nothing.
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
    learned_nothing = collapsed_line(round_.metrics or RoundMetrics())
    if learned_nothing:
        _refuse_nothing_learned(ctx, round_, labels, learned_nothing)
        keep_seeds = False  # they agree on everything, whatever a label is worth
    key = _key(label_set, [i.id for i in dev], keep_seeds)
    if not force and (record := record_of(folder)).get("key") == key and is_whole(folder, record):
        choice = _choice_in(record)
        return Made(folder, choice, (f"{folder} is up to date: {choice.name}, {choice.why}.",))
    remove_leftovers(folder)
    work = ctx.config.out / "models" / f"final-{label_set}"
    news: list[str] = [f"{learned_nothing}."] if learned_nothing else []
    seeds = _seed_models(ctx, round_, labels, label_set, evaluated, work, news)
    candidates = build_candidates(ctx, round_, labels, evaluated, dev, seeds, work, news)
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


def _refuse_nothing_learned(ctx: Context, round_: Round, labels: LabelSet, told: str) -> None:
    """Refuses to make a model of students that answer one class, where there was more to learn."""
    used = labels.weight > 0
    one = np.zeros(int(used.sum()), dtype=np.int64)
    more = nothing_learned(OwnAnswers(one, labels.y[used], labels.weight[used]))
    if more is not None and ctx.config.student.if_nothing_learned == "stop":
        raise StageError(
            f"There is no final model of round {round_.number}. {told}, and run another round. To"
            ' make the model all the same, set student.if_nothing_learned = "go on".'
        )


def _check_place(folder: Path) -> None:
    """Refuses to replace what ``goldloop model`` did not write."""
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and record_of(folder).get("kind") != KIND:
        raise StudentError(
            f"{folder} exists and is not a final model that goldloop made; it was not changed."
            f" Name another folder, or move it away."
        )


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
        if folder is not None and is_seed_model(folder, run.seed, ctx.student.revision):
            folders[run.seed] = folder
    seeds = seeds_of(ctx, round_)
    places = {seed: work / f"seed-{seed}" for seed in seeds}
    for seed in seeds:
        if seed not in folders and is_seed_model(places[seed], seed, ctx.student.revision):
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
            must_learn=seeds[0] in missing,
        )
        folders |= {seed: places[seed] for seed in missing}
        if changed and max(changed) > 0:
            news.append(
                "Seeds trained again answer differently from the round on"
                f" {100 * max(changed):.1f} % of the test texts at most: machine, device or"
                " versions are not the same as then."
            )
    return {seed: folders[seed] for seed in seeds}


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
    tokenizer.model_max_length = int(record_of(chosen)["max_tokens"])
    built_in = choice.temperature == 1.0 or build_in_temperature(model, choice.temperature)
    own = {f"seed {seed}": f"{SEEDS}/seed-{seed}" for seed in seeds}
    trained = record_of(chosen)
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
    card = model_card(
        CardFacts(
            config=ctx.config,
            record=record,
            llm=llm_in_words(ctx.store, round_),
            learned=_learned(ctx, round_),
            round_=round_,
            rounds=sum(
                r.stage == "done" and r.number != VALIDATION for r in ctx.store.rounds(ctx.name)
            ),
            own=_own_test(ctx, round_, chosen, evaluated),
            dev_known=sum(1 for i in ctx.keys("dev") if i.known_label),
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


def _learned(ctx: Context, round_: Round) -> list[tuple[str, str]]:
    """(label, source) of every text that the round's students learned.

    A label is repaired where it is another class, as in the export; soft repair makes probabilities
    of the others, too.
    """
    names, number = ctx.config.label_names, round_id(round_)
    scores, labels = ctx.store.all_scores(number), ctx.store.all_training_labels(number)
    llm = dict(zip(scores.rows.tolist(), scores.llm.tolist(), strict=True))
    likeliest = labels.probs.argmax(axis=1).tolist()
    learned = zip(labels.rows.tolist(), likeliest, labels.source.tolist(), strict=True)
    return [
        (names[y], "llm" if source == "repaired" and y == llm.get(row) else source)
        for row, y, source in learned
    ]


def _own_test(
    ctx: Context, round_: Round, chosen: Path, evaluated: Sequence[Item]
) -> dict[str, Metric]:
    """The chosen model's accuracy and macro-F1 where the round measured its seeds'."""
    truth = truth_of(ctx, evaluated)
    known = truth.y >= 0
    if not known.any():
        return {}
    texts = [i.text for i, there in zip(evaluated, known, strict=True) if there]
    predictions = ask_model(ctx, chosen, texts).argmax(axis=1)[None]
    stability = measure(
        predictions,
        truth.y[known],
        len(ctx.config.labels),
        weight=truth.weight[known],
        rng=stream("final model", round_.seed, round_.number),
    )
    own = {key: stability.metric(key) for key in ("accuracy", "macro_f1")}
    return {key: metric for key, metric in own.items() if metric is not None}


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for the same bytes where the file system knows that; models are large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
