"""What goes from a campaign into a paper: the table as LaTeX and CSV, and a methods paragraph."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence

from loop.addresses import without_folders
from loop.campaign.config import Config
from loop.campaign.metrics import METRICS, Metric, RoundMetrics
from loop.report.contents import NOT_COMPARABLE, Methods, ReportRow, ReportView
from loop.report.wording import difference, percent

IN_TABLE = ("accuracy", "macro_f1", "alpha_k", "p_uc", "reliable_accuracy")
HEADS = {"alpha_k": r"$\alpha_K$", "p_uc": r"$p_{uc}$", "macro_f1": "macro-F1"}

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "`": r"\textasciigrave{}",
    "\N{MINUS SIGN}": "$-$",
    "±": r"$\pm$",
    "–": "--",
    "…": r"\dots{}",
    "†": r"$\dagger$",
}


def latex(text: str) -> str:
    """Text that LaTeX sets as it is, on one line."""
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()) if c.isprintable())


def latex_table(view: ReportView) -> str:
    """The table per round for LaTeX with booktabs: means, spreads over seeds, 95 % intervals."""
    over = "test texts" if view.over == "items" else "test texts and seeds"
    notes = " People are simulated." if view.simulated else ""
    if any(row.not_comparable for row in view.rows):
        notes += f" {latex(NOT_COMPARABLE)}: not comparable with the rounds before it."
    heads = [HEADS.get(key, METRICS[key].title) for key in IN_TABLE]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(view.campaign)}: students by round, times 100; mean over {view.seeds}"
        rf" seeds $\pm$ standard deviation, below it the 95\,\% interval over {over}.{notes}}}",
        r"\small",
        r"\setlength{\tabcolsep}{2.5pt}",
        r"\begin{tabular}{@{}l" + "r" * (1 + len(heads)) + "@{}}",
        r"\toprule",
        " & ".join(["labels", "gold", *heads]) + r" \\",
    ]
    arm = None
    for row in view.ordered:
        lines.append(r"\midrule") if row.arm != arm else None
        arm = row.arm
        cells = [latex(row.name), f"{row.gold_bought:,}"]
        lines.append(" & ".join([*cells, *(_value(row, key) for key in IN_TABLE)]) + r" \\")
        below = [_interval(row.metrics.get(key)) for key in IN_TABLE]
        if any(below):
            lines.append(" & ".join(["", "", *below]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _value(row: ReportRow, key: str) -> str:
    metric, spread = row.metrics.get(key), METRICS[key].spread
    if metric is None or not metric.known:
        return "--"
    sd = row.metrics.get(spread) if spread else None
    known = sd is not None and sd.known
    return latex(percent(metric.value) + (f" ± {percent(sd.value)}" if sd and known else ""))


def _interval(metric: Metric | None) -> str:
    if metric is None or not metric.has_interval:
        return ""
    return rf"{{\scriptsize [{latex(percent(metric.low))}, {latex(percent(metric.high))}]}}"


def csv_table(view: ReportView) -> str:
    """The same table as CSV, every metric in [0, 1]; missing values are empty."""
    keys = list(METRICS)
    heads = ["labels", "arm", "round", "gold_bought", "seeds"]
    for key in keys:
        heads += [key, f"{key}_low", f"{key}_high", *([f"{key}_sd"] if METRICS[key].spread else [])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for row in view.ordered:
        line: list[object] = [row.name, row.arm, row.round, row.gold_bought, view.seeds]
        for key in keys:
            metric, spread = row.metrics.get(key) or Metric(float("nan")), METRICS[key].spread
            ends = [metric.value, metric.low, metric.high]
            if spread:
                ends.append((row.metrics.get(spread) or Metric(float("nan"))).value)
            line += [None if x != x else round(x, 6) for x in ends]
        writer.writerow(line)
    return text.getvalue()


REFERENCES = {
    "paper": "Feeding LLM Annotations to BERT Classifiers at Your Own Risk (2025)."
    " arXiv:2504.15432.",
    "batch": "Zhou, H. et al. (2024). Batch Calibration: Rethinking Calibration for In-Context"
    " Learning and Prompt Engineering. ICLR.",
    "contextual": "Zhao, Z. et al. (2021). Calibrate Before Use: Improving Few-shot Performance of"
    " Language Models. ICML.",
    "temperature": "Guo, C. et al. (2017). On Calibration of Modern Neural Networks. ICML.",
    "pivotal": "Grafström, A., Lundström, N. L. P. & Schelin, L. (2012). Spatially Balanced"
    " Sampling through the Pivotal Method. Biometrics 68.",
    "crowd": "Dawid, A. P. & Skene, A. M. (1979). Maximum Likelihood Estimation of Observer"
    " Error-Rates Using the EM Algorithm. Applied Statistics 28.",
    "alpha": "Krippendorff, K. (2011). Computing Krippendorff's Alpha-Reliability.",
    "bootstrap": "Efron, B. & Tibshirani, R. J. (1993). An Introduction to the Bootstrap.",
    "jackknife": "Efron, B. & Stein, C. (1981). The Jackknife Estimate of Variance. Annals of"
    " Statistics 9.",
    "survey": "Särndal, C.-E., Swensson, B. & Wretman, J. (1992). Model Assisted Survey Sampling.",
    "ppi": "Angelopoulos, A. N., Duchi, J. C. & Zrnic, T. (2023). PPI++: Efficient"
    " Prediction-Powered Inference. arXiv:2311.01453.",
}
"""What the paragraph cites, by a short name."""


def methods(config: Config, measured: Sequence[RoundMetrics], *, llm: str, version: str) -> Methods:
    """How the campaign's figures came about, with those of its newest round.

    Args:
        config: the campaign file as the newest round ran with it.
        measured: the rounds that were measured, at least one, oldest first.
        llm: what gave the LLM labels, in words.
        version: of goldloop.
    """
    newest = measured[-1]
    parts = [
        _labelled(config, newest, llm),
        _bought(config, measured),
        _learned(config, newest),
        _measured(newest),
        f"All was done with goldloop {version}.",
    ]
    cited: list[str] = []

    def number(marks: re.Match[str]) -> str:
        names = marks[1].split(",")
        cited.extend(name for name in names if name not in cited)
        return f"[{', '.join(str(1 + cited.index(name)) for name in names)}]"

    paragraph = _MARK.sub(number, " ".join(part for part in parts if part))
    return Methods(paragraph, tuple(REFERENCES[name] for name in cited))


_NAME = "|".join(REFERENCES)
_MARK = re.compile(rf"\[\[((?:{_NAME})(?:,(?:{_NAME}))*)\]\]")


def _labelled(config: Config, newest: RoundMetrics, llm: str) -> str:
    section, prompt = config.annotator, config.prompt
    texts = f"A pool of {newest.pool:,} texts"
    labels = f"one of {len(config.labels)} labels"
    if section.kind == "recorded":
        n = len(section.columns)
        by = f"the LLM labels recorded in {n} column{'s' * (n != 1)} of the source"
        told = f"{texts} took {labels} from {by}"
    else:
        told = (
            f"{texts} was given {labels} by {llm}, asked with {prompt.variants}"
            f" prompt{'s' * (prompt.variants != 1)} of {prompt.shots} examples each"
        )
    view = newest.calibration.view if newest.calibration else "raw"
    if view in CALIBRATED:
        how, source = CALIBRATED[view]
        told += f"; its probabilities were {how} [[{source}]]"
    return f"{told}."


CALIBRATED = {
    "batch": ("batch-calibrated", "batch"),
    "contextual": ("contextually calibrated", "contextual"),
    "gold": ("scaled to the gold labels", "temperature"),
}
"""By what was done to the LLM's probabilities: how that is called, and what it is cited by."""


def _bought(config: Config, measured: Sequence[RoundMetrics]) -> str:
    newest, rounds = measured[-1], len(measured)
    people = "simulated people" if config.raters.kind != "people" else "people"
    gold = newest.bought if newest.gold is None else newest.gold
    sent_as = Counter[str]()
    for metrics in measured:
        sent_as.update({reason: share.n for reason, share in metrics.pushed_wrong.items()})
    by_chance = sent_as["audit"] + sent_as["coverage"]
    audit = by_chance / sent_as.total() if sent_as else config.rounds.audit_frac
    spread = config.rounds.audit == "spread"
    drawn = " spread over the texts [[pivotal]]" if spread and audit else ""
    signals = ", ".join(name.replace("_", " ") for name in config.strategy.signals)
    rule = {
        "majority": "by majority",
        "dawid-skene": "by the model of Dawid and Skene",
        "ask-one-more": "by asking further people until one label led",
    }[config.people.rule]
    if config.people.rule == "dawid-skene":
        rule += " [[crowd]]"
    covered = sum("coverage" in metrics.pushed_wrong for metrics in measured)
    at_random = ""
    if covered:
        at_random = (
            f"; in {covered} round{'s' * (covered != 1)} all were drawn at random, because suspects"
            " had not been wrong more often"
        )
    sent = "text was" if newest.bought == 1 else "texts were"
    others = f"; the others were the texts of highest suspicion ({signals})" if audit < 1 else ""
    overlap = config.people.overlap
    each = f"{overlap} answers for each text, settled {rule}" if overlap > 1 else "one answer each"
    agreed = ""
    if newest.people_alpha is not None:
        agreed = (
            f"; people agreed with Krippendorff's alpha {percent(newest.people_alpha)} [[alpha]]"
        )
    return (
        f"In {rounds} round{'s' * (rounds != 1)}, {newest.bought:,} {sent} sent to {people}"
        f" ({each}), of which {gold:,} got a gold label{agreed}. {percent(audit)} % of them"
        f" were a random sample with known inclusion probabilities{drawn}{others}{at_random}."
    )


def _learned(config: Config, newest: RoundMetrics) -> str:
    repaired = {
        "keep": "the other labels stayed the LLM's",
        "soft": "the other labels became the classes' probabilities by a model of the LLM's errors"
        " that learned from gold",
        "weight": "the other labels were weighted by their probability of being right",
        "drop": "labels that were more likely wrong than right were left out",
        "relabel": "the other labels became the likeliest class by a model of the LLM's errors that"
        " learned from gold",
    }[config.strategy.repair]
    student, seeds = config.student, config.student.seeds
    if (loop := newest.arms.get("loop")) is not None:
        seeds = loop.seeds
    rate = "" if student.lr is None else f", learning rate {student.lr:g}"
    return (
        f"Gold labels replaced the LLM's; {repaired}. As in [[paper]], a classifier"
        f" ({without_folders(student.encoder)}, {student.epochs} epochs, batch size"
        f" {student.batch_size}{rate}) was trained with {seeds} random"
        f" seed{'s' * (seeds != 1)} on each set of labels."
    )


def _measured(newest: RoundMetrics) -> str:
    students = newest.arms.get("loop")
    if students is None:
        return ""
    tests = {
        "test": f"{students.known:,} test texts with known labels",
        "audit": f"{students.known:,} randomly drawn texts with gold, weighted by the inverse of"
        " their inclusion probability",
    }
    on = tests.get(
        newest.accuracy_from or "", f"{students.items:,} test texts without known labels"
    )
    over = "texts [[bootstrap]]"
    if students.over != "items":
        over += " and a jackknife over seeds [[jackknife]]"
    figures = [
        f"{METRICS[key].name} {_with_interval(metric)}"
        for key in ("accuracy", "macro_f1", "alpha_k", "p_uc")
        if (metric := students.metric(key)) is not None
    ]
    quality = newest.label_quality
    llm = ""
    if quality is not None and quality.accuracy is not None:
        llm = (
            f" Of the LLM's labels, {_with_interval(quality.accuracy)} % were right, estimated from"
            f" {quality.n_gold:,} gold labels ({quality.n_random:,} drawn at random) with weights"
            f" by inclusion probability [[survey,ppi]]."
        )
    compared = newest.compared.get("llm_only", {})
    gained = [
        f"{METRICS[key].name} {difference(compared[key])}"
        for key in ("accuracy", "macro_f1", "alpha_k")
        if key in compared and compared[key].known
    ]
    against = (
        f" Against students of the LLM's labels alone, paired: {', '.join(gained)}."
        if gained
        else ""
    )
    told = f" Students after the last round: {', '.join(figures)}." if figures else ""
    return (
        f"Students were evaluated on {on}. Figures are times 100, in parentheses 95 % intervals"
        f" from a bootstrap over {over}.{llm}{told}{against}"
    )


def _with_interval(metric: Metric) -> str:
    if not metric.has_interval:
        return percent(metric.value)
    return f"{percent(metric.value)} ({percent(metric.low)} to {percent(metric.high)})"
