"""What the LLM's probabilities are worth for finding its wrong labels, raw and calibrated.

    python tests/bench/bench_annotators.py --data FOLDER    # toxic, SST-5, e-commerce
    python tests/bench/bench_annotators.py                  # the demo's tweets, anywhere

The embedded language model answers five prompts (three shots) for each text through goldloop's own
code. Labels and signals are then compared under four views of the same answers:

- ``raw``;
- ``flat``: batch calibration towards equal classes;
- ``stated``: batch calibration towards the class mix of the 60 examples set aside;
- ``gold``: batch calibration towards the mix of a random audit of a fifth of the texts, then slope
  and biases fitted to that audit; cross-fitted, so that no text's own gold label has a say in its
  answer.

Intervals are 95 % bootstraps over the texts, 2,000 draws, paired where views are compared; the
prompts are fixed. Votes are kept in the cache folder after every 64 texts, so an interrupted run
continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_data
import numpy as np
from bench_cascade import at_random, cascade

from connectors.downloads.packages import cache_dir
from connectors.llm.local_lm import LocalLM
from loop.llm.cascade import flipped
from loop.llm.prompts import draw_demonstrations
from loop.llm.votes import mean_vote
from loop.ports import TextItem
from loop.prompt import Demonstration, Label, PromptVariant
from strategies import STRATEGIES
from strategies.calibrate import (
    batch_calibrate,
    calibration_error,
    fit_scaling,
    prior_from_gold,
    reliability,
)
from strategies.fuse import fuse_ranks, weighted_auroc
from strategies.needs import NEEDS
from strategies.pool import Pool
from strategies.signals.students import out_of_fold_probs

NAMES = ("toxic", "sst5", "ecommerce")
TEXTS, PROMPTS, SHOTS, CHUNK = 500, 5, 3, 64
TEXT_TOKENS = 96  # annotator.max_text_tokens; only e-commerce texts are often longer
AUDIT_FRAC, FOLDS = 0.2, 5
DRAWS = 2000
BUDGETS = (1.25, 1.5, 2.0, 3.0)
CASCADES = 5  # random seeds of the cascade, averaged
NOT_SIGNALS = ("random", "class_rarity", "learned_error", "entropy_calibrated")
VIEWS = ("raw", "flat", "stated", "gold")


@dataclass(frozen=True)
class Answers:
    """n texts, m prompts, k classes.

    Attributes:
        probs: (n, m, k) raw.
        off_label_mass: (n, m).
        gold: (n,) true classes.
        mix: (k,) class shares of the examples set aside, the stated prior.
        embeddings: (n, d).
        rate: texts a second, of the votes that this run took; NaN if it took none.
    """

    name: str
    labels: tuple[str, ...]
    ordinal: bool
    probs: Any
    off_label_mass: Any
    gold: Any
    mix: Any
    embeddings: Any
    revision: str
    rate: float


def answers(source: bench_data.Source, data: Path | None) -> Answers | None:
    """Votes of the embedded language model on a data set, or None where its file is missing."""
    texts = bench_data.read_texts(source, data)
    if texts is None:
        return None
    drawn = np.random.default_rng(1).permutation(len(texts.ids))[:TEXTS]
    items = [TextItem(texts.ids[i], texts.texts[i]) for i in drawn]
    shown = draw_demonstrations(
        [Demonstration(t, y) for t, y in texts.aside],
        texts.labels,
        shots=SHOTS,
        variants=PROMPTS,
        rng=np.random.default_rng(0),
    )
    labels = tuple(Label(name) for name in texts.labels)
    model = LocalLM(max_text_tokens=TEXT_TOKENS, threads=1)
    taken = [
        votes(model, PromptVariant(v, bench_data.TASKS[source.name], labels, demos), items)
        for v, demos in enumerate(shown)
    ]
    fresh, seconds = sum(t[2] for t in taken), sum(t[3] for t in taken)
    counts = np.bincount([texts.labels.index(y) for _, y in texts.aside], minlength=len(labels))
    return Answers(
        source.name,
        texts.labels,
        bool(source.ordinal),
        np.stack([t[0] for t in taken], axis=1),
        np.stack([t[1] for t in taken], axis=1),
        np.array([texts.labels.index(texts.gold[i]) for i in drawn], dtype=np.int64),
        (counts + 1) / (counts + 1).sum(),
        bench_data.embed(source.file, texts.texts)[drawn],
        model.revision,
        fresh / seconds if fresh else float("nan"),
    )


def votes(
    model: LocalLM, variant: PromptVariant, items: Sequence[TextItem]
) -> tuple[Any, Any, int, float]:
    """(n, k) probabilities, (n,) off-label mass, and how many were asked now in what time."""
    told = json.dumps([model.revision, variant.hash, [item.id for item in items]])
    path = cache_dir() / "bench" / f"votes-{hashlib.sha256(told.encode()).hexdigest()[:16]}.npz"
    probs, off = np.full((len(items), len(variant.labels)), np.nan), np.full(len(items), np.nan)
    done = 0
    if path.exists():
        held = np.load(path, allow_pickle=False)
        probs, off, done = held["probs"], held["off_label_mass"], int(held["done"])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial.npz")
    before, began = done, time.monotonic()
    while done < len(items):
        part = slice(done, done + CHUNK)
        answer = model.annotate(variant, items[part])
        probs[part], off[part] = answer.probs, answer.off_label_mass
        done = min(done + CHUNK, len(items))
        np.savez_compressed(partial, probs=probs, off_label_mass=off, done=np.array(done))
        partial.replace(path)
    return probs, off, done - before, time.monotonic() - began


@dataclass(frozen=True)
class View:
    """The answers as one view has them: (n, m, k) by prompt, (n, k) together, (n,) labels."""

    cube: Any
    posterior: Any

    @property
    def label(self) -> Any:
        """(n,) classes."""
        return self.posterior.argmax(axis=1).astype(np.int64)


def views(found: Answers, audit: Any) -> dict[str, View]:
    """The four views."""
    cubes = {
        "raw": found.probs,
        "flat": batch_calibrate(found.probs),
        "stated": batch_calibrate(found.probs, found.mix),
    }
    held = {name: View(cube, mean_vote(cube)) for name, cube in cubes.items()}
    cube, posterior = fitted(found, audit)
    for part in np.array_split(np.random.default_rng(3).permutation(np.flatnonzero(audit)), FOLDS):
        rest = audit.copy()
        rest[part] = False
        its_cube, its_posterior = fitted(found, rest)
        cube[part], posterior[part] = its_cube[part], its_posterior[part]
    return held | {"gold": View(cube, posterior)}


def fitted(found: Answers, audit: Any) -> tuple[Any, Any]:
    """(n, m, k) answers under the audit's class mix, and (n, k) their means scaled to its gold."""
    known = np.where(audit, found.gold, -1)
    k = found.probs.shape[2]
    cube = batch_calibrate(
        found.probs, prior_from_gold(known, None, k, pseudo=3.0, towards=found.mix)
    )
    mean = mean_vote(cube)
    return cube, fit_scaling(mean[audit], found.gold[audit]).apply(mean)


def signals(found: Answers, view: View, label: Any) -> dict[str, Any]:
    """Every signal that needs no gold, of these labels under this view."""
    rng = np.random.default_rng(0)
    n, _, k = found.probs.shape
    pool = Pool(
        probs=view.cube,
        y_llm=label,
        gold=np.full(n, -1, dtype=np.int64),
        embeddings=found.embeddings,
        p_student=out_of_fold_probs(found.embeddings, label, np.ones(n), k, seeds=5, rng=rng),
        off_label_mass=found.off_label_mass,
        ordinal=found.ordinal,
    )
    names = [
        name
        for name in STRATEGIES
        if name not in NOT_SIGNALS and (found.ordinal or "ordinal" not in NEEDS[name])
    ]
    scores = {name: STRATEGIES[name](pool, rng) for name in names}
    usual = ("entropy", "flip_rate", "knn_disagreement", "student_disagreement")
    scores["fused"] = fuse_ranks({name: scores[name] for name in usual})
    return scores


def learned(found: Answers, view: View, label: Any, audit: Any, prior: Any) -> Any:
    """Suspicion learned from the audit's gold."""
    rng = np.random.default_rng(0)
    n, _, k = found.probs.shape
    gold = np.where(audit, found.gold, -1)
    y = np.where(audit, found.gold, label)
    pool = Pool(
        probs=view.cube,
        y_llm=label,
        gold=gold,
        embeddings=found.embeddings,
        p_student=out_of_fold_probs(found.embeddings, y, np.ones(n), k, seeds=5, rng=rng),
        off_label_mass=found.off_label_mass,
        class_prior=prior,
        ordinal=found.ordinal,
    )
    return STRATEGIES["learned_error"](pool, rng)


class Bootstrap:
    """Paired resampling of n texts: every figure is computed on the same 2,000 draws."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.draws = np.random.default_rng(0).integers(n, size=(DRAWS, n))

    def spread(self, statistic: Callable[[Any], float]) -> Any:
        """(1 + draws,) the statistic of all rows, then of each resample of rows."""
        return np.array([statistic(np.arange(self.n)), *(statistic(rows) for rows in self.draws)])


def figure(spread: Any, *, pivotal: bool = False) -> dict[str, float]:
    """Value and 95 % interval.

    Args:
        spread: value first, then that of each draw; draws without a value are NaN.
        pivotal: mirrors the interval on the value, for what resampling inflates (errors of
            calibration), and cuts it at 0.
    """
    value = float(spread[0])
    low, high = (float(q) for q in np.nanquantile(spread[1:], [0.025, 0.975]))
    if pivotal:
        low, high = max(0.0, 2 * value - high), max(0.0, 2 * value - low)
    return {"value": value, "low": low, "high": high}


def auroc(scores: Any, wrong: Any) -> Callable[[Any], float]:
    """The area under the ROC curve of rows, NaN where they are all right or all wrong."""

    def of(rows: Any) -> float:
        bad = wrong[rows]
        if bad.all() or not bad.any():
            return float("nan")
        return weighted_auroc(scores[rows], bad, np.ones(len(rows)))

    return of


def macro_f1(label: Any, gold: Any, k: int) -> Callable[[Any], float]:
    """Macro-F1 of rows over the classes that occur in gold or labels."""

    def of(rows: Any) -> float:
        table = np.bincount(gold[rows] * k + label[rows], minlength=k * k).reshape(k, k)
        both = table.sum(axis=0) + table.sum(axis=1)
        return float((2 * np.diag(table)[both > 0] / both[both > 0]).mean())

    return of


def measure(found: Answers) -> dict[str, Any]:
    """Every figure of one data set, as JSON."""
    n, _, k = found.probs.shape
    audit = np.isin(
        np.arange(n), np.random.default_rng(2).choice(n, round(AUDIT_FRAC * n), replace=False)
    )
    boot = Bootstrap(n)
    held = views(found, audit)
    return {
        "data": found.name,
        "texts": n,
        "audit": int(audit.sum()),
        "prompts": PROMPTS,
        "shots": SHOTS,
        "classes": list(found.labels),
        "class_shares": (np.bincount(found.gold, minlength=k) / n).tolist(),
        "stated_mix": found.mix.tolist(),
        "annotator": found.revision,
        "texts_per_s": found.rate,
        "views": view_figures(held, found.gold, boot, k),
        "signals": signal_figures(found, held, audit, boot),
        "cascade": {
            name: cascade_figures(found, prior, boot)
            for name, prior in (("flat", None), ("stated", found.mix))
        },
    }


def view_figures(held: dict[str, View], gold: Any, boot: Bootstrap, k: int) -> Any:
    """Accuracy, macro-F1, calibration error and flip rate of each view, and minus raw's."""
    spreads: dict[str, dict[str, Any]] = {}
    for name, view in held.items():
        label, posterior = view.label, view.posterior
        right = label == gold

        def ece(rows: Any, p: Any = posterior) -> float:
            return calibration_error(reliability(p[rows], gold[rows]))

        def accuracy(rows: Any, right: Any = right) -> float:
            return float(right[rows].mean())

        spreads[name] = {
            "accuracy": boot.spread(accuracy),
            "macro_f1": boot.spread(macro_f1(label, gold, k)),
            "ece": boot.spread(ece),
        }
        if name != "gold":  # a scaling of the mean has no prompts of its own
            flips = flipped(view.cube)
            spreads[name]["flips"] = boot.spread(lambda rows, f=flips: float(f[rows].mean()))
    return {
        name: {
            key: figure(spread, pivotal=key == "ece")
            | {"minus_raw": figure(spread - spreads["raw"][key])}
            for key, spread in found.items()
        }
        for name, found in spreads.items()
    }


def signal_figures(found: Answers, held: dict[str, View], audit: Any, boot: Bootstrap) -> Any:
    """AUROC of each signal at wrong labels.

    ``own``: raw answers at the errors of raw labels. For the flat and the stated mix, at the errors
    of the labels that it gives: ``raw`` answers, ``calibrated`` ones, and their difference, the
    ``gain``, which so has one target.
    """
    gold, raw = found.gold, held["raw"]
    wrong = raw.label != gold
    out: dict[str, Any] = {
        name: {"own": figure(boot.spread(auroc(scores, wrong)))}
        for name, scores in signals(found, raw, raw.label).items()
    }
    for view, prior in (("flat", None), ("stated", found.mix)):
        label = held[view].label
        wrong = label != gold
        before = signals(found, raw, label)
        for name, scores in signals(found, held[view], label).items():
            at_raw = boot.spread(auroc(before[name], wrong))
            at_ours = boot.spread(auroc(scores, wrong))
            out[name][view] = {
                "raw": figure(at_raw),
                "calibrated": figure(at_ours),
                "gain": figure(at_ours - at_raw),
            }
        trained = learned(found, raw, label, audit, prior)
        of_trained = figure(boot.spread(auroc(trained, wrong)))
        out.setdefault("learned_error", {})[view] = {"calibrated": of_trained}
    return out


def cascade_figures(found: Answers, prior: Any, boot: Bootstrap) -> Any:
    """Flips that the cascade finds, in shares of those that all prompts find, by calls a text."""

    def view(probs: Any) -> Any:
        return batch_calibrate(probs, prior)

    every = flipped(view(found.probs))
    out = []
    for calls in BUDGETS:
        row: dict[str, Any] = {"asked_calls": calls}
        for how, take in (
            ("cascade", lambda s, c=calls: cascade(found.probs, c, view, s)),
            ("random", lambda s, c=calls: at_random(found.probs, c, s)),
        ):
            taken = [take(seed) for seed in range(CASCADES)]
            hit = np.mean([flipped(view(t)) & every for t in taken], axis=0)
            spent = np.mean([np.isfinite(t).all(axis=2).sum(axis=1) for t in taken], axis=0)

            def share(rows: Any, hit: Any = hit, of: Any = every) -> float:
                return float(hit[rows].sum() / max(of[rows].sum(), 1))

            row[how] = figure(boot.spread(share)) | {"calls": float(spent.mean())}
        out.append(row)
    return out


def cell(f: dict[str, float], *, sign: bool = False) -> str:
    """A share as a percentage with its interval."""
    form = "{:+.1f}" if sign else "{:.1f}"
    value, low, high = (form.format(100 * f[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def tables(results: list[dict[str, Any]]) -> str:
    """Markdown tables of all data sets."""
    out = [
        "| data | view | accuracy | macro-F1 | calibration error | texts with a flip |",
        "|---|---|---|---|---|---|",
    ]
    for found in results:
        for name in VIEWS:
            v = found["views"][name]
            flips = cell(v["flips"]) if "flips" in v else ""
            out.append(
                f"| {found['data']} | {name} | {cell(v['accuracy'])} | {cell(v['macro_f1'])}"
                f" | {cell(v['ece'])} | {flips} |"
            )
    out += [
        "",
        "| data | minus raw | accuracy | macro-F1 | calibration error |",
        "|---|---|---|---|---|",
    ]
    for found in results:
        for name in VIEWS[1:]:
            v = found["views"][name]
            cells = [
                cell(v[key]["minus_raw"], sign=True) for key in ("accuracy", "macro_f1", "ece")
            ]
            out.append(f"| {found['data']} | {name} | {' | '.join(cells)} |")
    out += [
        "",
        "| data | signal | raw labels | flat labels: raw | calibrated | gain"
        " | stated labels: raw | calibrated | gain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for found in results:
        for name, s in found["signals"].items():
            cells = [cell(s["own"]) if "own" in s else ""]
            for view in ("flat", "stated"):
                cells += [
                    cell(s[view][key]) if key in s[view] else "" for key in ("raw", "calibrated")
                ]
                gain = s[view].get("gain")
                moved = gain and (gain["low"], gain["high"]) != (0, 0)
                cells.append(cell(gain, sign=True) if moved else "")
            out.append(f"| {found['data']} | {name} | {' | '.join(cells)} |")
    out += [
        "",
        "| data | view | texts with a flip | calls a text | flips found | calls at random |",
        "|---|---|---|---|---|---|",
    ]
    for found in results:
        for view, rows in found["cascade"].items():
            flips = 100 * found["views"][view]["flips"]["value"]
            out += [
                f"| {found['data']} | {view} | {flips:.1f} | {row['cascade']['calls']:.2f}"
                f" | {cell(row['cascade'])} | {cell(row['random'])} |"
                for row in rows
            ]
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--only", nargs="*", help="names of data sets")
    parser.add_argument("--out", type=Path, help="folder for results.json and tables.md")
    given = parser.parse_args()
    wanted = given.only or (NAMES if given.data else (bench_data.DEMO.name,))
    results = []
    for source in (*bench_data.SOURCES, bench_data.DEMO):
        if source.name not in wanted:
            continue
        found = answers(source, given.data)
        if found is None:
            raise SystemExit(f"{source.name}: its file is not in {given.data}")
        results.append(measure(found))
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            (given.out / "results.json").write_text(json.dumps(results, indent=1))
            (given.out / "tables.md").write_text(tables(results) + "\n")
    print(tables(results))


if __name__ == "__main__":
    main()
