"""What is printed can be read in every terminal, and steers none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from loop.campaign.metrics import METRICS, Metric
from loop.cli import terminal
from loop.cli.terminal import echo, echo_json, print_table
from loop.people.person import Person, Rate
from loop.people.scorecards import people_table
from loop.report.contents import ReportRow, ReportView
from loop.report.terminal_table import terminal_table

CLI = Path(terminal.__file__).parent
WIDTHS = (40, 80, 100, 120, 200)

ROUND = ReportRow("loop", 12, 12400, {key: Metric(-0.9876, -1.2346, -0.8765) for key in METRICS})
REPORT = ReportView("films", "t", ("a", "b"), (ROUND, ReportRow("llm_only", None, 0)), 5, False)
ANN = Person(
    "ann@example.org",
    answers=1234,
    labels=1200,
    skipped=31,
    unsure=2,
    unreadable={"empty result": 1},
    agreement=Rate.of(90, 120),
    checks=Rate.of(18, 20),
    reliability=0.93,
    alpha_without=None,
    median_s=12.5,
    fast=0,
    flags=("answers faster than one can read", "agrees less often than others"),
)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            lambda: terminal_table(REPORT),
            ["Round 12", "LLM labels only", "12,400", "−98.8", "−123.5", "to −87.6", "alpha_K"],
        ),
        (
            lambda: people_table([ANN]),
            ["ann@example.org", "answers", "1234", "unreadable", "reliability", "93", "12.5"],
        ),
    ],
    ids=["report", "people"],
)
def test_no_number_and_no_name_is_cut_however_narrow_the_terminal(capsys, table, says, width):
    print_table(table(), width)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    for said in says:
        assert said in shown, said


def test_a_narrow_table_is_one_block_for_each_row(capsys):
    table = Table(title="films", caption="times 100")
    table.add_column("")
    for title in ("reliable\nacc.", "macro-F1", "churn", "accuracy"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_row("Round 1", "50.0\n40.0–60.0", "–", "[1–2]…", "61.0\n50.0–70.0")
    table.add_row("Round 2", "51.0\n41.0–61.0", "–", "–", "62.0")
    print_table(table, 40)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "films",
        "",
        "Round 1",
        "  reliable acc.  50.0 · 40.0–60.0",
        "  macro-F1       –",
        "  churn          [1–2]…",
        "  accuracy       61.0 · 50.0–70.0",
        "",
        "Round 2",
        "  reliable acc.  51.0 · 41.0–61.0",
        "  macro-F1       –",
        "  churn          –",
        "  accuracy       62.0",
        "",
        "times 100",
    ]


def test_what_others_wrote_does_not_steer_stdout(capsys):
    echo("ev\x1b[2J\x1b]0;pwn\x07il\u202e@x \u2066 \u05e9\u200f é\ttab")
    assert capsys.readouterr().out == (
        "ev\\x1b[2J\\x1b]0;pwn\\x07il\\u202e@x \\u2066 \u05e9\u200f é\ttab\n"
    )
    echo_json({"who": "ev\x1b[2J\u202e"})
    assert capsys.readouterr().out == '{\n  "who": "ev\\u001b[2J\\u202e"\n}\n'


ADDRESSES_ALONE = {"serving.py"}


def test_commands_print_through_the_functions_that_make_text_harmless():
    for file in CLI.glob("*.py"):
        if file.name in {"terminal.py", *ADDRESSES_ALONE}:
            continue
        calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        named = {ast.unparse(call.func) for call in calls}
        assert not named & {"typer.echo", "typer.secho", "print", "sys.stdout.write"}, file.name


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding_ends_no_command(encoding):
    told = subprocess.run(
        [sys.executable, "-c", PRINTS],
        env={"PYTHONIOENCODING": encoding, "PYTHONPATH": str(CLI.parent.parent)},
        capture_output=True,
        check=True,
    )
    lines = told.stdout.splitlines()
    assert lines[0].strip() == b"50 \\u2013 60"
    assert lines[1] in (b"50 \\u2013 60", "50 – 60".encode())  # typer writes UTF-8 for ASCII


PRINTS = """
from rich.table import Table
from loop.cli import __main__
from loop.cli.terminal import echo, print_table

def run():
    table = Table(box=None, show_header=False)
    table.add_row("50 – 60")
    print_table(table)
    echo("50 – 60")

__main__._run = run
__main__.main()
"""
