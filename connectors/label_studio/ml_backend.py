"""How Label Studio talks to an ML backend and to webhooks: what it sends, what it wants back.

``goldloop serve`` owns the server and the student; here is the wire format alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.label_studio.page import choice_result
from loop.ports import FloatArray, normalise

MAX_TASKS = 10_000


@dataclass(frozen=True)
class MlBackend:
    """Implements the serving port for Label Studio.

    Attributes:
        blind: whether nobody shall see what the student thinks: the predictions then hold no
            label.
    """

    blind: Callable[[], bool]

    def health(self) -> dict[str, Any]:
        """The answer to ``/health``."""
        return {"status": "UP", "model_class": "goldloop"}

    def setup(self, version: str) -> dict[str, Any]:
        """The answer to ``/setup``; an empty version is a student that is not trained yet."""
        return {"model_version": version or "untrained"}

    def texts(self, body: Mapping[str, Any]) -> list[str | None]:
        """The texts that ``/predict`` asks about; None for a task without one.

        Raises:
            ValueError: no list of tasks, or too many.
        """
        tasks = body.get("tasks")
        if not isinstance(tasks, list) or len(tasks) > MAX_TASKS:
            raise ValueError(f"tasks is not a list of at most {MAX_TASKS}")
        texts: list[str | None] = []
        for task in tasks:
            data = task.get("data") if isinstance(task, dict) else None
            text = data.get("text") if isinstance(data, dict) else None
            texts.append(text if isinstance(text, str) and normalise(text) else None)
        return texts

    def predictions(
        self, version: str, labels: Sequence[str | None], score: FloatArray
    ) -> dict[str, Any]:
        """The answer to ``/predict``.

        Args:
            version: which student answers.
            labels: n labels, in the order of the tasks; None for a task without a text.
            score: (n,) in [0, 1]; tasks with the lowest are to be labelled first.
        """
        blind = self.blind()
        results = [
            {
                "model_version": version,
                "score": float(one),
                "result": [] if blind or label is None else choice_result(label),
            }
            for label, one in zip(labels, score, strict=True)
        ]
        return {"results": results, "model_version": version}

    def project(self, body: Mapping[str, Any]) -> str | None:
        """The project that a webhook is about, or None where it does not say."""
        about = body.get("project")
        number = about.get("id") if isinstance(about, dict) else None
        return None if number is None else str(number)
