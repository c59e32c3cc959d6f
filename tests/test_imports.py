"""Imports point down only: every room stands on a floor, and imports nothing above it.

Imports inside functions and under ``TYPE_CHECKING`` count like all others, because a reader has to
follow them too; see ``import_floors``.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests import import_floors

ROOT = Path(__file__).parent.parent
MAX_FLOORS = 12
FLOORS = (
    ("loop.cli",),
    ("loop.deliver", "loop.serve", "loop.operate"),
    ("loop.round", "loop.studies"),
    ("loop.report", "loop.bench"),
    ("loop.next_round",),
    ("loop.measure",),
    ("loop.pool_arrays", "loop.training_sets"),
    ("loop.llm", "loop.people"),
    ("loop.money", "loop.student"),
    ("loop.campaign", "loop.executor"),
    ("loop.ports", "loop.files", "loop.chance"),
    ("loop.errors", "loop.prompt", "loop.addresses", "loop.hardware", "loop", "strategies"),
)
"""From the top down. Rooms on the same floor do not import each other."""

FOR_CONNECTORS = {
    "connectors",
    "loop.ports",
    "loop.prompt",
    "loop.errors",
    "loop.files",
    "loop.addresses",
    "loop.hardware",
}
HEIGHT = {room: len(FLOORS) - row for row, floor in enumerate(FLOORS) for room in floor}
arrows = cache(import_floors.arrows)


def of_room(*rooms):
    return {m: targets for m, targets in arrows().items() if import_floors.room_of(m) in rooms}


def test_every_room_stands_on_a_floor():
    rooms = {import_floors.room_of(module) for module in arrows()}
    assert rooms - set(HEIGHT) - {"connectors", "goldloop"} == set()
    assert len(FLOORS) <= MAX_FLOORS


def test_rooms_import_only_what_lies_below():
    for module, targets in arrows().items():
        room = import_floors.room_of(module)
        if room in ("loop.cli", "connectors", "goldloop"):
            continue
        for target in targets:
            below = import_floors.room_of(target)
            assert below == room or HEIGHT.get(below, MAX_FLOORS) < HEIGHT[room], (module, target)


def test_connectors_know_ports_and_errors_only():
    for module, targets in of_room("connectors").items():
        for target in targets:
            assert import_floors.room_of(target) in FOR_CONNECTORS, (module, target)


def test_strategies_know_nothing_of_ours():
    for module, targets in of_room("strategies").items():
        assert {import_floors.room_of(target) for target in targets} <= {"strategies"}, module


def test_only_the_command_line_knows_connectors():
    for module, targets in arrows().items():
        if import_floors.room_of(module) not in ("connectors", "loop.cli"):
            assert not [t for t in targets if t.split(".")[0] == "connectors"], module


def test_no_circle_and_no_long_chain():
    assert import_floors.back_arrows(arrows()) == []
    assert len(import_floors.longest_chain(arrows())) <= MAX_FLOORS
    assert len(import_floors.longest_chain(import_floors.between_rooms(arrows()))) <= MAX_FLOORS


@pytest.mark.parametrize(
    ("files", "back", "chain"),
    [
        ({"a": "import loop.b", "b": ""}, 0, 2),
        ({"a": "from loop import b", "b": "def f():\n    from loop.c import x", "c": ""}, 0, 3),
        ({"a": "import loop.b", "b": "if TYPE_CHECKING:\n    from loop.a import T"}, 1, 2),
        ({"a": "import loop.b, loop.c", "b": "import loop.c", "c": "import loop.a"}, 1, 3),
    ],
)
def test_floors_are_counted_right(tmp_path, files, back, chain):
    (tmp_path / "loop").mkdir()
    for name, text in files.items():
        (tmp_path / "loop" / f"{name}.py").write_text(text)
    graph = import_floors.arrows(tmp_path)
    assert len(import_floors.back_arrows(graph)) == back
    assert len(import_floors.longest_chain(graph)) == chain


def test_help_and_the_student_s_name_need_no_heavy_library(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 32}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    code = (
        "import sys; import goldloop, loop.cli.__main__, strategies, connectors;"
        "from loop.student.encoder_student import EncoderStudent;"
        f"EncoderStudent({str(tmp_path)!r}).revision;"
        "heavy = {'torch', 'transformers', 'faiss', 'sklearn', 'pandas', 'label_studio_sdk',"
        " 'sqlmodel', 'matplotlib', 'pyarrow'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
