"""The page, the table and the JSON say the same, escape everything, and survive what is missing."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from math import nan
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import campaigns
import pytest
from rich.console import Console

from loop.campaign.metrics import (
    METRICS,
    WITH_SPREADS,
    FrozenAccuracy,
    FrozenAgreement,
    LlmQuality,
    Metric,
    Recovered,
    Share,
)
from loop.errors import LoopError
from loop.report.contents import (
    BudgetLine,
    ClassRow,
    CurveRow,
    Instability,
    LearningCurves,
    PartRow,
    People,
    ReportRow,
    ReportView,
    Verdict,
)
from loop.report.html import render, write_report
from loop.report.plots import curves_plot, standalone
from loop.report.rounds_json import rounds_json, write_rounds
from loop.report.terminal_table import terminal_table
from loop.report.wording import difference, interval, percent, verdict

EVIL = '<script>alert("1")</script> & $x_{1}$ {{ 7*7 }} [bold]\'\u202e'


def metrics(base: float) -> dict[str, Metric | None]:
    return {
        key: Metric(base + i / 100, base + i / 100 - 0.031, base + i / 100 + 0.031)
        for i, key in enumerate(WITH_SPREADS)
    }


def row(arm: Any, number: int | None, bought: int, base: float, **more: Any) -> ReportRow:
    return ReportRow(arm, number, bought, metrics(base), **more)


VIEW = ReportView(
    campaign="tweets",
    task="Negative or positive?",
    labels=("negative", "positive"),
    rows=(
        row("all_gold", None, 1234, 0.7111),
        row("random", 1, 80, 0.5222),
        row(
            "loop",
            2,
            160,
            0.6333,
            per_class=(ClassRow("negative", Metric(0.4321, 0.4, 0.5), Metric(0.2), 77),),
            recovered={"alpha_k": Recovered(0.4871, 0.2, 0.03)},
        ),
        row(
            "loop",
            1,
            80,
            0.5444,
            pushed_wrong={"audit": Share(0.125, 8), "suspect": Share(0.6543, 72)},
        ),
        row("llm_only", None, 0, 0.5111),
    ),
    seeds=5,
    simulated=True,
    evaluated=400,
    people=People(Metric(0.5931), 720, 3, 3),
    budget=(BudgetLine("Gold labels", 160, 240), BudgetLine("USD", 1.5)),
    notes=("Stopped: the budget is spent.",),
    provenance={"versions": {"torch": "2.8.0"}, "seed": 7},
)
DIFFERENCES = {
    "alpha_k": Metric(0.012, -0.005, 0.0311),
    "accuracy": Metric(-0.0234, -0.03, -0.01),
}
FULL = replace(
    VIEW,
    rows=(
        *VIEW.rows,
        row(
            "loop",
            3,
            240,
            0.6333,
            per_class=(
                ClassRow("negative", Metric(0.4321, 0.4, 0.5), Metric(0.2), 77, Metric(0.3456)),
                ClassRow("positive", Metric(0.8), Metric(0.3, note="says little"), 3),
            ),
            against={"previous": DIFFERENCES},
            confusion=((0.2, 0.3), (0.1, 0.4)),
        ),
    ),
    llm=LlmQuality(
        accuracy=Metric(0.7),
        recall=(Metric(0.6123, 0.5, 0.7), None),
        precision=(None, Metric(0.5987, 0.4, 0.8)),
        class_share=(Metric(0.45), Metric(0.55)),
        confusion=((0.3, 0.15), (0.0, 0.55)),
        n_gold=174,
        n_random=35,
    ),
    frozen=FrozenAgreement(
        Metric(0.8111, 0.78, 0.84),
        Metric(0.6),
        Metric(0.93),
        Metric(0.12, 0.09, 0.15),
        FrozenAccuracy(0.7, 0.65, Metric(-0.05)),
    ),
    instability=Instability(
        3,
        "encoder",
        4,
        400,
        (PartRow("first weights", Metric(0.0777, 0.05, 0.1), Metric(0.5), None, None, None),),
        "It comes from here.",
    ),
    plateau=LearningCurves(
        3,
        "frozen",
        "accuracy",
        5,
        400,
        tuple(
            CurveRow(
                name,
                arm,
                (30, 60, 120),
                tuple(Metric(0.5 + x, 0.45 + x, 0.55 + x) for x in (0.0, 0.05, 0.08)),
                Metric(0.6666, 0.6, 0.7),
                Metric(0.0123, 0.001, 0.02),
                (30.0, 120.0, 480.0),
                tuple(Metric(0.5 + x, 0.45 + x, 0.55 + x) for x in (0.0, 0.08, 0.1)),
            )
            for name, arm in (("LLM labels", "llm_only"), ("gold labels", "all_gold"))
        ),
        "They will help.",
    ),
    over="items and seeds",
)
EMPTY = ReportView("c", "t", ("a", "b"), (), seeds=5, simulated=False)
BARE = replace(EMPTY, rows=(ReportRow("loop", 1, 10), ReportRow("random", 1, 10)))


@cache
def page_of_view() -> str:
    return render(VIEW)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    campaigns.no_plots(monkeypatch.setattr)


class Checker(HTMLParser):
    """Collects tags and checks that they are closed in order."""

    VOID = frozenset({"meta", "br", "line", "link", "img", "use", "path", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def words(page: str) -> str:
    """The page's text without tags, spaces collapsed."""
    body = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def table_text(view: ReportView, width: int = 120) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(terminal_table(view))
    return console.export_text()


@pytest.mark.parametrize("view", [VIEW, FULL, EMPTY, BARE], ids=["plain", "full", "empty", "bare"])
def test_the_page_stands_alone(view: ReportView) -> None:
    page = render(view)
    for tag, attrs in parsed(page).seen:
        assert tag not in ("script", "link", "img", "iframe", "object")
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith("#")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_numbers_stand_in_the_page_with_their_intervals() -> None:
    text = words(page_of_view())
    for shown in (
        *("63.3", "60.2–66.4", "54.4", "52.2", "51.1", "71.1", "1,234"),
        *("65.4 % of 72 suspects", "12.5 % of 8 random texts"),
        *("48.7 %", "+20.0", "43.2 40.0–50.0", "77", "alpha 59.3"),
        *("720 from 3 simulated raters", "160 of 240, 80 left", "USD 1.50"),
        *("Stopped: the budget is spent.", "The people are simulated", "2.8.0", "5 seeds"),
        *("LLM labels only", "Random, round 1", "All gold", "Stability alone can mislead"),
    ):
        assert shown in text


def test_every_part_of_the_measurement_stands_in_the_page() -> None:
    text = words(render(FULL))
    for shown in (
        "the round before not shown +1.2 (−0.5 to +3.1) – worse −2.3 (−3.0 to −1.0)",
        "61.2 50.0–70.0",  # the LLM's recall, beside
        "43.2 40.0–50.0 alpha 20.0 34.6",  # its students' recall and precision
        "by 174 gold labels (35 drawn at random)",
        "negative 40.0 60.0",  # of 100 texts of the class, the students' labels
        "negative 66.7 33.3",  # and the LLM's
        "12.0 points less often than two seeds of the full student agree (9.0 to 15.0)",
        "81.1 (78.0–84.0)",
        "It comes from here.",
        "7.8 5.0–10.0 50.0",
        "They will help.",
        "66.7 60.0–70.0",
        "test texts and other seeds",
    ):
        assert shown in text, shown
    found = json.loads(json.dumps(rounds_json(FULL), allow_nan=False))
    assert found["rows"][3]["verdict"] == "not shown to be more stable"
    assert found["rows"][3]["against"]["previous"]["alpha_k"]["value"] == 0.012
    assert found["rows"][3]["per_class"][1]["alpha"]["note"] == "says little"
    assert found["llm"]["recall"][1] is None
    assert found["plateau"]["curves"][0]["asymptote"]["value"] == 0.6666
    assert found["intervals_over"] == "items and seeds"


def test_a_round_is_more_stable_only_where_the_interval_says_so() -> None:
    def told(low: float, high: float) -> str:
        return verdict(
            ReportRow("loop", 2, 9, against={"previous": {"alpha_k": Metric(0.1, low, high)}})
        )

    assert told(0.01, 0.2) == "more stable"
    assert told(-0.2, -0.01) == "less stable"
    assert told(-0.01, 0.2) == "not shown to be more stable"
    assert told(nan, nan) == ""
    assert verdict(ReportRow("loop", 1, 9)) == ""


def test_the_curves_are_a_drawing_of_their_own_too() -> None:
    svg = standalone(curves_plot(FULL.plateau))
    root = ElementTree.fromstring(svg)  # noqa: S314 - drawn here
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(--" not in svg
    assert curves_plot(None) == ""


def test_every_metric_has_a_plot_in_the_colours_of_the_page() -> None:
    page = page_of_view()
    plots = re.findall(r"<svg role=.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == len(METRICS)
    for plot in plots:
        assert "var(--loop)" in plot
        assert "var(--llm-only)" in plot
        assert not re.search(r"#0\d0\d0\d", plot)
        assert "gold labels" in plot
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_same_view_gives_the_same_page() -> None:
    assert render(VIEW) == page_of_view()


def test_hostile_names_are_shown_and_not_run() -> None:
    view = replace(
        VIEW,
        campaign=EVIL,
        task=EVIL,
        labels=(EVIL, "positive"),
        notes=(EVIL,),
        budget=(BudgetLine(EVIL, 1),),
        provenance={EVIL: {EVIL: EVIL}},
        created=EVIL,
        llm=FULL.llm,
        instability=replace(FULL.instability, told=EVIL, student=EVIL, parts=()),
        plateau=replace(
            FULL.plateau,
            told=EVIL,
            metric=EVIL,
            curves=(replace(FULL.plateau.curves[0], name=EVIL),),
        ),
        rows=tuple(
            replace(r, per_class=(ClassRow(EVIL, Metric(0.5)),), confusion=((0.5, 0.5), (0.0, 0.0)))
            for r in FULL.rows
        ),
    )
    page = render(view)
    assert "script" not in {tag for tag, _ in parsed(page).seen}
    assert words(page).count("{{ 7*7 }}") >= 7
    assert EVIL in table_text(view).replace("\n", " ")
    assert json.loads(json.dumps(rounds_json(view)))["labels"][0] == EVIL


def test_real_people_are_not_called_simulated() -> None:
    view = replace(VIEW, simulated=False)
    assert "imulated" not in words(render(view))
    assert "imulated" not in table_text(view)


def test_missing_values_are_dashes() -> None:
    text = words(render(BARE))
    assert "Round 1 10 – – – – – – –" in text
    assert "No round is measured yet." in words(render(EMPTY))
    assert "Round 1" in table_text(BARE)
    nothing = rounds_json(BARE)["rows"][0]["metrics"]
    assert nothing == dict.fromkeys(WITH_SPREADS)


def test_a_gap_within_noise_tells_no_share() -> None:
    newest = row("loop", 3, 240, 0.6, recovered={"alpha_k": Recovered(None, 0.01, 0.05)})
    text = words(render(replace(VIEW, rows=(*VIEW.rows, newest))))
    assert "+1.0 5.0 – gap within noise" in text


@pytest.mark.usefixtures("no_plots")
def test_cards_say_why_a_number_is_missing_and_never_call_collapsed_students_stable() -> None:
    flat = replace(BARE, collapsed=True)
    text = words(render(flat))
    assert text.count("Not shown: every run gives every text the same label.") == 3
    assert "better" not in text.split("Round by round")[0]
    assert "There are no known labels to test on." in words(
        render(replace(BARE, accuracy_from=None))
    )
    assert "Too few gold labels were drawn at random to tell." in text
    assert "1 run, test texts" in words(render(replace(BARE, seeds=1)))


@pytest.mark.usefixtures("no_plots")
def test_the_page_begins_with_the_verdict_and_cards_say_what_is_shown() -> None:
    told = Verdict("Llm <b>.", "Gain.", "Goal.", "Next: `goldloop run`.")
    against = {
        "llm_only": {"accuracy": Metric(0.1, 0.02, 0.2), "alpha_k": Metric(0.1, -0.1, 0.3)},
        "random": {"accuracy": Metric(-0.1, -0.2, -0.02)},
    }
    newest = row("loop", 3, 240, 0.6, against=against)
    page = render(replace(VIEW, verdict=told, rows=(*VIEW.rows, newest)))
    text = words(page).replace(" ,", ",")
    order = [text.index(part) for part in (*told.paragraphs[1:3], "LLM labels right", "Round by")]
    assert order == sorted(order)
    assert "<code>goldloop run</code>" in page
    assert "<b>" not in page
    assert "compared with the LLM's labels alone: better, +10.0 (+2.0 to +20.0)" in text
    assert "compared with as many random gold labels: worse, −10.0 (−20.0 to −2.0)" in text
    assert "compared with the LLM's labels alone: not shown, +10.0 (−10.0 to +30.0)" in text


@pytest.mark.usefixtures("no_plots")
def test_many_labels_have_no_matrix_but_their_confusions() -> None:
    names = tuple(f"class {i}" for i in range(200))
    matrix = [[0.005 if i == j else 0.0 for j in range(200)] for i in range(200)]
    matrix[7][3] = 0.01
    view = replace(
        BARE,
        labels=names,
        rows=(
            row(
                "loop",
                1,
                9,
                0.5,
                confusion=tuple(map(tuple, matrix)),
                per_class=tuple(ClassRow(name) for name in names),
            ),
        ),
    )
    text = words(render(view))
    assert "200 labels class 0 class 1" in text
    assert "class 7 class 3 students 66.7 1.0 %" in text
    assert "how many get each label" not in text


def test_not_a_number_is_missing_everywhere() -> None:
    view = replace(BARE, rows=(ReportRow("loop", 1, 10, {"alpha_k": Metric(nan, nan, nan)}),))
    assert "nan" not in words(render(view)).lower()
    json.dumps(rounds_json(view), allow_nan=False)


def test_where_accuracy_comes_from_is_told() -> None:
    assert "audit sample, each text weighted" in words(render(replace(BARE, accuracy_from="audit")))
    assert "only stability is measured" in words(render(replace(BARE, accuracy_from=None)))


def test_the_table_fits_and_says_the_same() -> None:
    shown = table_text(VIEW)
    assert max(len(line) for line in shown.splitlines()) <= 120
    for expected in ("LLM labels only", "Round 2", "63.3", "60.2–66.4", "±", "12.5 random"):
        assert expected in shown
    order = [shown.index(name) for name in ("LLM labels", "Round 1", "Round 2", "Random", "All")]
    assert order == sorted(order)
    assert "…" not in shown


def test_percent_and_interval() -> None:
    assert interval(Metric(0.1, -0.02, 0.2)) == "−2.0 to 20.0"
    assert difference(Metric(0.1, -0.02, 0.2)) == "+10.0 (−2.0 to +20.0)"
    assert difference(Metric(0.1)) == "+10.0"
    assert difference(None) == "–"
    assert [percent(v) for v in (0.12345, -0.02, -0.0001, 1, None)] == [
        "12.3",
        "\N{MINUS SIGN}2.0",
        "0.0",
        "100.0",
        "–",
    ]
    assert percent(0.02, sign=True) == "+2.0"
    assert interval(Metric(0.5, 0.4, 0.6)) == "40.0–60.0"
    assert interval(Metric(0.5)) == ""


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_report(VIEW, tmp_path / "new" / "report.html")
    write_rounds(VIEW, tmp_path / "new" / "rounds.json")
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == page_of_view()
    rows = json.loads((tmp_path / "new" / "rounds.json").read_text(encoding="utf-8"))["rows"]
    assert [(r["arm"], r["round"]) for r in rows] == [
        *(("llm_only", None), ("loop", 1), ("loop", 2)),
        *(("random", 1), ("all_gold", None)),
    ]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["report.html", "rounds.json"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(LoopError, match="cannot be written"):
        write_report(VIEW, tmp_path / "folder")
    assert not list(tmp_path.glob(".*"))
