"""Commands that only read a campaign need none of the heavy libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from campaigns import LABELS, make

from loop.next_round import open_campaign, why_finished
from loop.people.gold import people_alpha
from loop.round import repaired_labels, run_round
from loop.studies.plateau import measure_plateau
from loop.studies.side_runs import side_runs, write_result
from loop.studies.variance import MIN_BASES, measure_variance

ROOT = Path(__file__).parents[3]
HEAVY = (
    "cv2",
    "datasets",
    "faiss",
    "gguf",
    "huggingface_hub",
    "krippendorff",
    "label_studio_sdk",
    "nltk",
    "pandas",
    "pyarrow",
    "safetensors",
    "sklearn",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
)
OF_THE_REPORT = ("matplotlib", "httpx", "jinja2")
REFUSE = """
import importlib.abc, sys

refused, of_the_report = {refused!r}, {of_the_report!r}

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(f"{{name}} is refused", name=name)

sys.meta_path.insert(0, Refuse())
from loop.cli.__main__ import main

for command in sys.argv[1:]:
    if command == "report":
        refused -= of_the_report
    sys.argv = ["goldloop", *command.split()]
    try:
        main()
    except SystemExit as exc:
        if exc.code:
            raise
    print("<<>>", flush=True)
"""
CAMPAIGN = """\
campaign = {name = "c", task = "t"}
labels = [{name = "bad"}, {name = "good"}]
texts = {source = "x.csv", gold_column = "g"}
annotator = {kind = "recorded", columns = ["llm", "llm_2"]}
budget.labels = 30
rounds = {batch_size = 15, rounds = 2, audit_frac = 0.2}
student = {seeds = 3, references = ["llm_only", "random", "all_gold"]}
people = {overlap = 3, rule = "dawid-skene", assist_share = 0.5, assist = "why"}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a campaign of two rounds, in which three people answered every text."""
    folder = tmp_path_factory.mktemp("campaign")
    ctx = make(
        folder,
        raters=False,
        people={
            "overlap": 3,
            "rule": "dawid-skene",
            "assist": "why",
            "assist_share": 0.5,
        },
    )
    open_campaign(ctx)
    truth = {i.id: i.known_label for i in ctx.store.items("c")}
    while why_finished(ctx) is None:
        run_round(ctx)
        for n, item_id in enumerate(ctx.reviewer.open_items(3)):
            for who in ("ann", "bob", "cid"):
                right = truth[item_id]
                wrong = LABELS[1 - LABELS.index(right)]
                said = wrong if who == "cid" and n % 4 == 0 else right
                ctx.reviewer.answer(item_id, who, said)
    runs = side_runs(ctx, "frozen")
    write_result(ctx, "plateau", measure_plateau(runs, sizes=3, seeds=2).to_json())
    taken_apart = measure_variance(runs, MIN_BASES, repaired_labels)
    write_result(ctx, "variance", taken_apart.to_json())
    assert people_alpha(ctx.store.annotations("c"), LABELS, ordinal=False) < 1
    ctx.store.close()
    (folder / "goldloop.toml").write_text(CAMPAIGN, encoding="utf-8")
    return folder


def goldloop(folder, refused, *args):
    code = REFUSE.format(refused=set(refused), of_the_report=set(OF_THE_REPORT))
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_reading_needs_no_heavy_library(finished):
    """One process runs all commands; the last one, the report, may import what draws it."""
    commands = {
        "status": "To continue, raise rounds.rounds and budget.labels in the campaign file",
        "status --json": '"campaign": "c"',
        "people": "cid",
        "people --json": '"alpha_without"',
        "export labels.csv": "",
        "export labels.jsonl": "",
        "codebook": "",
        "report": "Round 2",
    }
    done = goldloop(finished, (*HEAVY, *OF_THE_REPORT), *commands)
    assert done.returncode == 0, done.stderr
    *told, _ = done.stdout.split("<<>>")
    for out, (command, shown) in zip(told, commands.items(), strict=True):
        assert shown in out, command


def test_the_refusal_refuses(finished):
    """Else the test above would pass whatever is imported."""
    done = goldloop(finished, ("numpy",), "status")
    assert done.returncode != 0
    assert "numpy" in done.stderr
