"""The benchmark's numbers: summaries, paired comparisons, tables, a plot and ``results.json``."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loop.campaign.metrics import METRICS, WITH_SPREADS
from loop.files import SHARED, replacing, replacing_text, write_whole

if TYPE_CHECKING:
    from rich.table import Table


ROUNDING = 1e-12  # differences below are no differences
SPENT = ("label_accuracy", "pushed_wrong", "errors_caught")
REFERENCES = ("llm_only", "all_gold")
SHOWN = ("macro_f1", "reliable_accuracy", "alpha_k", "p_uc")


def summarise(
    records: Sequence[Mapping[str, Any]], noise: Mapping[tuple[str, str], float]
) -> list[dict[str, Any]]:
    """Mean, spread, interval and recovered share per data set, strategy and budget.

    Args:
        records: of ``run_bench``.
        noise: (data set, metric) -> size below which the gap of the references means nothing.

    Returns:
        One entry per group; the recovered share is None where the gap is within the noise, its
        denominator is there in any case.
    """
    from loop.measure.stability import recovered_share

    groups: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for record in records:
        key = (record["data"], record["strategy"], record["budget"])
        groups.setdefault(key, []).append(record)
    out = []
    for (data, strategy, budget), held in groups.items():
        entry: dict[str, Any] = {
            "data": data,
            "role": held[0]["role"],
            "strategy": strategy,
            "budget": budget,
            "bought": float(np.mean([r["bought"] for r in held])),
            "seconds": float(np.mean([r["seconds"] for r in held])),
        }
        for metric in (*WITH_SPREADS, *SPENT):
            entry[metric] = spread([r[metric] for r in held])
            over_items = held[0].get("over_items", {}).get(metric)
            if len(held) == 1 and over_items and over_items["value"]["low"] is not None:
                entry[metric] |= over_items["value"]
            if entry[metric]["low"] == entry[metric]["high"]:  # nothing says how far others differ
                entry[metric] |= {"low": None, "high": None}
        recovered = {}
        for metric in METRICS:
            llm, gold = (
                _mean([r[metric] for r in groups[data, reference, 0.0]]) for reference in REFERENCES
            )
            value = entry[metric]["mean"]
            if strategy in REFERENCES or value is None or llm is None or gold is None:
                continue
            over = spread(
                [
                    None if None in (a[metric], b[metric]) else b[metric] - a[metric]
                    for a, b in zip(*(groups[data, r, 0.0] for r in REFERENCES), strict=True)
                ]
            )
            half = max(noise.get((data, metric), 0.0), (over["high"] - over["low"]) / 2)
            share, gap = recovered_share(value, llm, gold, noise=half)
            recovered[metric] = {"share": share, "gap": gap, "noise": half}
            if share is not None:
                recovered[metric] |= _share_interval(held, groups, data, metric, share, gap)
        entry["recovered"] = recovered
        out.append(entry)
    return out


def _share_interval(
    held: Sequence[Mapping[str, Any]],
    groups: Mapping[tuple[str, str, float], Sequence[Mapping[str, Any]]],
    data: str,
    metric: str,
    share: float,
    gap: float,
) -> dict[str, float | None]:
    """95 % interval of a recovered share: over repetitions, linearised, or over test texts.

    Source: Cochran 1977, section 6 (ratio estimates).
    """
    if len(held) == 1:
        ends: dict[str, float | None] = (
            held[0].get("over_items", {}).get(metric, {}).get("share", {"low": None, "high": None})
        )
        return ends
    llm, gold = (
        {r["repetition"]: r[metric] for r in groups[data, reference, 0.0]}
        for reference in REFERENCES
    )
    residuals = []
    for record in held:
        a, b, mine = llm[record["repetition"]], gold[record["repetition"]], record[metric]
        residuals.append(None if None in (a, b, mine) else mine - a - share * (b - a))
    over = spread(residuals)
    half = (over["high"] - over["low"]) / 2 / abs(gap)
    if half <= 0:
        return {"low": None, "high": None}
    return {"low": share - half, "high": share + half}


def over_items_intervals(
    drawn: Mapping[tuple[str, float], Mapping[str, NDArray[np.float64]]],
    strategy: str,
    budget: float,
    first: str,
) -> dict[str, Any]:
    """95 % bootstrap intervals over test texts, for a benchmark of one repetition.

    Args:
        drawn: (strategy, budget) -> metric -> replicates that share their draws.
        strategy, budget: whose intervals are wanted.
        first: the strategy that the others are compared with.

    Returns:
        Metric -> 'value', 'minus' (reference -> paired difference of this strategy to it), and
        where they make sense 'share' (of the recovered gap) and 'first_minus' (paired difference of
        the first strategy to this one), each low and high.
    """
    out: dict[str, Any] = {}
    for metric in METRICS:
        mine = drawn[strategy, budget][metric]
        entry: dict[str, Any] = {"value": _percentiles(mine)}
        entry["minus"] = {
            reference: _percentiles(mine - drawn[reference, 0.0][metric])
            for reference in REFERENCES
            if reference != strategy
        }
        if strategy not in REFERENCES:
            llm, gold = (drawn[reference, 0.0][metric] for reference in REFERENCES)
            with np.errstate(divide="ignore", invalid="ignore"):
                entry["share"] = _percentiles((mine - llm) / (gold - llm))
            if (first, budget) in drawn and strategy != first:
                entry["first_minus"] = _percentiles(drawn[first, budget][metric] - mine)
        out[metric] = entry
    return out


def _percentiles(values: NDArray[np.float64]) -> dict[str, float | None]:
    known = values[np.isfinite(values)]
    if not len(known):
        return {"low": None, "high": None}
    low, high = np.percentile(known, [2.5, 97.5])
    if high - low <= ROUNDING:  # resamples of texts that all agree are no certainty
        return {"low": None, "high": None}
    return {"low": float(low), "high": float(high)}


def compare(
    records: Sequence[Mapping[str, Any]],
    ours: str,
    rivals: Sequence[str],
    metrics: Sequence[str] = tuple(METRICS),
) -> list[dict[str, Any]]:
    """Paired differences, ours minus rival, per data set and budget, with a verdict each.

    Args:
        records: of ``run_bench``.
        ours, rivals: names of strategies.
        metrics: keys of the records.

    Returns:
        One entry per data set, budget, rival and metric: mean difference, 95 % interval over
        repetitions (over test texts if there is one repetition), and 'win', 'tie' or 'loss' (an
        interval that leaves zero out; without an interval always a tie). For churn less is better.
    """
    values: dict[tuple[str, float, str], dict[int, Mapping[str, Any]]] = {}
    for record in records:
        key = (record["data"], record["budget"], record["strategy"])
        values.setdefault(key, {})[record["repetition"]] = record
    out = []
    for (data, budget, strategy), mine in values.items():
        if strategy != ours:
            continue
        for rival in rivals:
            theirs = values.get((data, budget, rival), {})
            pairs = [(mine[r], theirs[r]) for r in sorted(set(mine) & set(theirs))]
            if not pairs:
                continue
            for metric in metrics:
                difference = spread(
                    [
                        None if None in (a[metric], b[metric]) else a[metric] - b[metric]
                        for a, b in pairs
                    ]
                )
                if difference["mean"] is None:
                    continue
                over_items = pairs[0][1].get("over_items", {}).get(metric, {}).get("first_minus")
                known = difference["n"] > 1
                if not known and over_items and over_items["low"] is not None:
                    difference, known = difference | over_items, True
                sign = 1.0 if metric in SPENT or METRICS[metric].higher_is_better else -1.0
                low, high = sorted((sign * difference["low"], sign * difference["high"]))
                told = known and high - low > ROUNDING and not low <= 0 <= high
                verdict = ("win" if low > 0 else "loss") if told else "tie"
                out.append(
                    {
                        "data": data,
                        "role": pairs[0][0]["role"],
                        "budget": budget,
                        "rival": rival,
                        "metric": metric,
                        **difference,
                        "verdict": verdict,
                    }
                )
    return out


def _mean(values: Sequence[float | None]) -> float | None:
    held = [v for v in values if v is not None]
    return float(np.mean(held)) if held else None


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation and 95 % t interval of what is known."""
    from scipy.special import stdtrit

    held = np.array([v for v in values if v is not None], dtype=np.float64)
    n = len(held)
    if not n:
        return {"mean": None, "sd": None, "low": 0.0, "high": 0.0, "n": 0}
    mean = float(held.mean())
    sd = float(held.std(ddof=1)) if n > 1 else 0.0
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n) if n > 1 else 0.0
    return {"mean": mean, "sd": sd, "low": mean - half, "high": mean + half, "n": n}


def median_recovered(
    summary: Sequence[Mapping[str, Any]], budget: float, metric: str
) -> dict[str, tuple[float, int]]:
    """Strategy -> median over data sets of the recovered share, and how many sets have one.

    For alpha_K and p_uc only sets where gold's value is the higher one count: where students of
    wrong labels agree more than students of gold, there is nothing to recover.
    """
    shares: dict[str, list[float]] = {}
    for entry in summary:
        recovered = entry["recovered"].get(metric)
        if (
            entry["budget"] != budget
            or not recovered
            or recovered["share"] is None
            or recovered["gap"] <= 0
        ):
            continue
        shares.setdefault(entry["strategy"], []).append(recovered["share"])
    return {name: (float(np.median(held)), len(held)) for name, held in shares.items()}


def verdicts(
    comparisons: Sequence[Mapping[str, Any]], budget: float, metric: str
) -> dict[str, Counter[str]]:
    """Rival -> how many data sets ours wins, ties and loses on."""
    counts: dict[str, Counter[str]] = {}
    for c in comparisons:
        if c["budget"] == budget and c["metric"] == metric:
            counts.setdefault(c["rival"], Counter())[c["verdict"]] += 1
    return counts


def reference_table(result: BenchResult) -> Table:
    """Students of gold against students of LLM labels, the columns of the paper's Table 1."""
    from rich.table import Table

    table = Table(title="students of gold and of LLM labels (times 100)", title_justify="left")
    table.add_column("data set", no_wrap=True)
    table.add_column("labels")
    for name in ("accuracy", "sd", "macro-F1", "sd", "alpha_K", "p_uc", "reliable acc."):
        table.add_column(name, justify="right")
    for entry in result.summary:
        if entry["strategy"] in REFERENCES:
            table.add_row(
                entry["data"],
                "gold" if entry["strategy"] == "all_gold" else "LLM",
                _with_interval(entry["accuracy"]),
                _hundred(entry["accuracy_sd"]["mean"]),
                _with_interval(entry["macro_f1"]),
                _hundred(entry["macro_f1_sd"]["mean"]),
                *(_with_interval(entry[m]) for m in ("alpha_k", "p_uc", "reliable_accuracy")),
            )
    return table


def pooled_recovered(
    records: Sequence[Mapping[str, Any]], budget: float, metric: str, draws: int = 1000
) -> dict[str, tuple[float, float, float]]:
    """Strategy -> recovered share of all sets' gaps together, and its 95 % interval.

    The sum of the gains over the sum of the gaps, so that large gaps count for more; bootstrap over
    repetitions. Strategies that a data set lacks have none, nor is there any without a gap.

    Args:
        records: of ``run_bench``.
        draws: bootstrap replicates.
    """
    values: dict[str, dict[str, list[float | None]]] = {}
    for record in records:
        if record["strategy"] in REFERENCES or record["budget"] == budget:
            of_set = values.setdefault(record["data"], {})
            of_set.setdefault(record["strategy"], []).append(record[metric])
    rng = np.random.default_rng(0)
    shares = {}
    for name in sorted({name for of_set in values.values() for name in of_set} - set(REFERENCES)):
        held = [
            [of_set.get(key, [None]) for key in (name, *REFERENCES)] for of_set in values.values()
        ]
        if any(None in column for columns in held for column in columns):
            continue
        total = np.zeros((draws + 1, 3))
        for columns in held:
            n = len(columns[0])
            rows = np.vstack([np.arange(n), rng.integers(n, size=(draws, n))])
            total += np.array(columns, dtype=np.float64)[:, rows].mean(axis=2).T
        gain, gap = total[:, 0] - total[:, 1], total[:, 2] - total[:, 1]
        if gap[0] > 0:
            low, high = np.percentile(gain[1:] / gap[1:], [2.5, 97.5])
            shares[name] = float(gain[0] / gap[0]), float(low), float(high)
    return shares


def share_table(result: BenchResult) -> Table:
    """Recovered share of each gap at each budget, with its interval; gaps within noise have none.

    The gap, gold minus LLM, is the share's denominator.
    """
    from rich.table import Table

    table = Table(title="recovered share of the gap, in %", title_justify="left")
    table.add_column("data set", no_wrap=True)
    table.add_column("strategy", no_wrap=True)
    table.add_column("metric")
    table.add_column("gap × 100", justify="right")
    budgets = result.settings["budgets"]
    for budget in budgets:
        table.add_column(f"{budget:.0%}", justify="right")
    recovered = {(e["data"], e["strategy"], e["budget"]): e["recovered"] for e in result.summary}
    for data, strategy in dict.fromkeys(key[:2] for key in recovered if key[1] not in REFERENCES):
        for metric in SHOWN:
            at = [recovered.get((data, strategy, b), {}).get(metric) for b in budgets]
            gaps = [entry["gap"] for entry in at if entry]
            table.add_row(
                data,
                strategy,
                METRICS[metric].title,
                _hundred(gaps[0]) if gaps else "–",
                *(_share_cell(entry) for entry in at),
            )
    return table


def _share_cell(entry: Mapping[str, Any] | None) -> str:
    if not entry or entry["share"] is None:
        return "–"
    cell = f"{100 * entry['share']:.0f}"
    if entry["low"] is not None:
        cell += f" ({100 * entry['low']:.0f} to {100 * entry['high']:.0f})"
    return cell


def _hundred(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def tables(result: BenchResult) -> list[Table]:
    """Readable tables: every data set at every budget, then the comparison over all of them."""
    from rich.table import Table

    out: list[Table] = []
    budgets = result.settings["budgets"]
    ours = result.settings["strategies"][0]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for held in result.summary:
        groups.setdefault((held["data"], held["role"]), []).append(held)
    for (data, role), entries in groups.items():
        table = Table(title=f"{data}{f' ({role})' if role else ''}", title_justify="left")
        table.add_column("strategy", no_wrap=True)
        table.add_column("gold", justify="right")
        table.add_column("wrong among pushed", justify="right")
        table.add_column("right labels", justify="right")
        for metric in SHOWN:
            table.add_column(METRICS[metric].title, justify="right")
        table.add_column("recovered F1 / reliable", justify="right")
        for entry in sorted(entries, key=lambda e: (e["budget"], e["strategy"] not in REFERENCES)):
            shares = [
                entry["recovered"].get(m, {}).get("share")
                for m in ("macro_f1", "reliable_accuracy")
            ]
            table.add_row(
                entry["strategy"],
                f"{entry['bought']:.0f}",
                _percent(entry["pushed_wrong"]["mean"]),
                _percent(entry["label_accuracy"]["mean"]),
                *(_with_interval(entry[m]) for m in SHOWN),
                " / ".join(_percent(s) for s in shares) if entry["recovered"] else "",
            )
        out.append(table)
    for budget in budgets:
        table = Table(
            title=f"{ours} against each rival at {budget:.0%} of the pool:"
            " data sets won / tied / lost, and median recovered share of the gap",
            title_justify="left",
        )
        table.add_column("strategy", no_wrap=True)
        for metric in SHOWN:
            table.add_column(METRICS[metric].title, justify="right")
        for metric in SHOWN:
            table.add_column(f"{METRICS[metric].title} recovered", justify="right")
        medians = {m: median_recovered(result.summary, budget, m) for m in SHOWN}
        counts = {m: verdicts(result.comparisons, budget, m) for m in SHOWN}
        for name in result.settings["strategies"]:
            cells = []
            for metric in SHOWN:
                c = counts[metric].get(name)
                cells.append(f"{c['win']} / {c['tie']} / {c['loss']}" if c else "")
            for metric in SHOWN:
                share, sets = medians[metric].get(name, (None, 0))
                cells.append(f"{_percent(share)} ({sets})" if sets else "")
            table.add_row(name, *cells)
        out.append(table)
    return out


def write_results(result: BenchResult, folder: Path) -> list[Path]:
    """Writes ``results.json``, ``results.txt`` and ``results.svg``; returns their paths."""
    from rich.console import Console

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("results.json", "results.txt", "results.svg")]
    content = json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n"
    write_whole(paths[0], content, mode=SHARED)
    with replacing_text(paths[1], mode=SHARED) as file:
        console = Console(file=file, width=160)
        for table in tables(result):
            console.print(table)
    plot(result, paths[2])
    return paths


def plot(result: BenchResult, path: Path) -> None:
    """Macro-F1 and reliable accuracy against the budget, one row of panels a data set."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(entry["data"] for entry in result.summary))
    shown = ("macro_f1", "reliable_accuracy")
    figure = Figure(figsize=(9.0, 2.6 * len(sets) + 0.8), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(len(sets), len(shown), squeeze=False)
    lines: dict[str, Any] = {}
    for row, data in zip(panels, sets, strict=True):
        for axes, metric in zip(row, shown, strict=True):
            held = [e for e in result.summary if e["data"] == data]
            for place, name in enumerate(result.settings["strategies"]):
                points = sorted(
                    (e["budget"], e[metric]["mean"], e[metric]["low"], e[metric]["high"])
                    for e in held
                    if e["strategy"] == name and e[metric]["mean"] is not None
                )
                if not points:
                    continue
                x, y, low, high = (
                    np.array(column, dtype=np.float64) for column in zip(*points, strict=True)
                )
                (line,) = axes.plot(
                    x,
                    y,
                    marker="o",
                    markersize=3,
                    color=f"C{place % 10}",
                    linestyle=("-", "--", ":")[place // 10 % 3],
                    linewidth=2.2 if not place else 1,
                )
                axes.fill_between(x, low, high, color=line.get_color(), alpha=0.08)
                lines[name] = line
            for reference, style in zip(REFERENCES, (":", "--"), strict=True):
                references = [e for e in held if e["strategy"] == reference]
                if references and references[0][metric]["mean"] is not None:
                    lines[reference] = axes.axhline(
                        references[0][metric]["mean"], color="0.4", linestyle=style, linewidth=1
                    )
            axes.set_title(f"{data}: {METRICS[metric].title}", fontsize=9)
            axes.set_xlabel("gold labels bought, share of the pool", fontsize=8)
            axes.tick_params(labelsize=7)
    figure.legend(
        list(lines.values()), list(lines), loc="outside lower center", ncols=5, fontsize=7
    )
    with replacing(path, mode=SHARED) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _with_interval(metric: Mapping[str, Any]) -> str:
    if metric["mean"] is None:
        return "–"
    if metric["low"] is None:
        return f"{100 * metric['mean']:.1f}"
    half = (metric["high"] - metric["low"]) / 2
    return f"{100 * metric['mean']:.1f} ± {100 * half:.1f}"


@dataclass(frozen=True)
class BenchResult:
    """What a run of the benchmark found.

    Attributes:
        records: one per data set, strategy, budget and repetition; references have budget 0.
        summary: one per data set, strategy and budget: mean, spread and interval of each metric,
            and the recovered share with its denominator.
        comparisons: paired differences of the first strategy to each other one.
        settings: of the run.
    """

    records: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and None."""
        return {
            "settings": self.settings,
            "summary": self.summary,
            "comparisons": self.comparisons,
            "records": self.records,
        }
