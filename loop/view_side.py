"""What ``goldloop variance`` and ``goldloop plateau`` found, as the report shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loop.errors import LoopError
from loop.report_view import Arm, CurveRow, Instability, LearningCurves, Metric, PartRow

ARM_OF: dict[str, Arm] = {"llm": "llm_only", "merged": "loop", "gold": "all_gold"}


def instability(folder: Path) -> Instability | None:
    """The last result of ``goldloop variance``, or None.

    Raises:
        LoopError: the file is broken.
    """
    from loop.variance import PARTS, TOGETHER

    found = _read(folder / "variance.json")
    if found is None:
        return None
    try:
        parts = tuple(
            PartRow((PARTS | TOGETHER)[name], **{key: metric(m) for key, m in part.items()})
            for name, part in found["parts"].items()
        )
        return Instability(
            found["round_number"],
            found["student"],
            found["bases"],
            found["items"],
            parts,
            found["told"],
        )
    except (KeyError, TypeError) as exc:
        raise _broken(folder / "variance.json", "variance") from exc


def plateau(folder: Path) -> LearningCurves | None:
    """The last result of ``goldloop plateau``, or None.

    Raises:
        LoopError: the file is broken.
    """
    from loop.plateau import LABELS

    found = _read(folder / "plateau.json")
    if found is None:
        return None
    try:
        curves = tuple(
            CurveRow(
                name=LABELS[kind],
                arm=ARM_OF[kind],
                sizes=tuple(curve["sizes"]),
                points=tuple(Metric(**m) for m in curve["points"]),
                asymptote=Metric(**curve["asymptote"]),
                doubling=Metric(**curve["doubling"]),
                shown_at=tuple(curve["shown_at"]),
                fitted=tuple(Metric(**m) for m in curve["fitted"]),
            )
            for kind, curve in found["curves"].items()
        )
        return LearningCurves(
            found["round_number"],
            found["student"],
            found["metric"].replace("macro_f1", "macro-F1"),
            found["seeds"],
            found["items"],
            curves,
            found["told"],
        )
    except (KeyError, TypeError) as exc:
        raise _broken(folder / "plateau.json", "plateau") from exc


def metric(found: dict[str, Any] | None) -> Metric | None:
    """A stored metric; None where it has no value."""
    if not found or found.get("value") is None:
        return None
    return Metric(found["value"], found.get("low"), found.get("high"), found.get("note", ""))


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise _broken(path, path.stem) from exc
    if not isinstance(found, dict):
        raise _broken(path, path.stem)
    return found


def _broken(path: Path, command: str) -> LoopError:
    return LoopError(f"{path} cannot be read; delete it, or run `goldloop {command}` again.")
