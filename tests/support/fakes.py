"""Quick stand-ins for the ports, for tests of the loop itself. They keep the ports' promises."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

from loop.ports import Fetched, FetchedTask, RawAnnotation, SeedResult, no_news, no_progress

WORDS = 64


def bag(texts):
    """(n, 64) hashed bags of words."""
    out = np.zeros((len(texts), WORDS), dtype=np.float32)
    for i, text in enumerate(texts):
        for word in text.lower().split():
            out[i, zlib.crc32(word.encode()) % WORDS] += 1.0
    return out


class FileReviewer:
    """A Label Studio that is one JSON file: it outlives the process, as the real server does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            self._save({"tasks": {}, "clock": 0})

    def _load(self):
        return json.loads(self.path.read_text())

    def _save(self, data):
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(data))
        partial.replace(self.path)

    def open_project(self, project_id):
        return project_id or "1"

    def send(self, tasks, progress=no_progress):
        data = self._load()
        for task in tasks:
            if task.item_id not in data["tasks"]:
                data["made"] = data.get("made", 0) + 1
                made = {"id": str(data["made"]), "answers": {}, "at": 0}
                data["tasks"][task.item_id] = made | {"assisted": task.assisted}
            progress(1)
        self._save(data)
        return {t.item_id: data["tasks"][t.item_id]["id"] for t in tasks}

    def answer(self, item_id, person, label, *, skipped=False, problem=None, note=""):
        """One person answers, or corrects an answer.

        Without label, skip and problem, the answer is deleted.
        """
        data = self._load()
        data["clock"] += 1
        task = data["tasks"][item_id]
        task["at"] = data["clock"]
        if label is None and not skipped and problem is None:
            task["answers"].pop(person)
        else:
            said = {"label": label, "skipped": skipped, "problem": problem, "note": note}
            task["answers"][person] = said | {"at": data["clock"]}
        self._save(data)

    def open_items(self, overlap=1):
        return [
            k
            for k, t in self._load()["tasks"].items()
            if len(t["answers"]) < t.get("wanted", overlap)
        ]

    def fetch(self, cursor):
        data = self._load()
        since = int(cursor or 0)
        tasks = [
            FetchedTask(
                task["id"],
                item_id,
                tuple(
                    RawAnnotation(
                        annotation_id=f"{item_id}-{person}",
                        task_id=task["id"],
                        item_id=item_id,
                        annotator=person,
                        label=a["label"],
                        skipped=a["skipped"],
                        note=a["note"],
                        lead_time_s=1.0,
                        updated_at=f"{a['at']:06d}",
                        problem=a["problem"],
                        raw=a,
                    )
                    for person, a in task["answers"].items()
                ),
            )
            for item_id, task in data["tasks"].items()
            if task["at"] >= since
        ]
        return Fetched(tuple(tasks), str(data["clock"]), whole=cursor is None)

    def ask(self, wanted):
        data = self._load()
        for task in data["tasks"].values():
            if task["id"] in wanted:
                task["wanted"] = wanted[task["id"]]
        self._save(data)

    def withdraw(self, item_ids):
        data = self._load()
        gone = {i for i in item_ids if not data["tasks"].get(i, {"answers": {}})["answers"]}
        data["tasks"] = {k: t for k, t in data["tasks"].items() if k not in gone}
        for item in data["tasks"].keys() & item_ids:
            data["tasks"][item]["wanted"] = len(data["tasks"][item]["answers"])
        self._save(data)
        return gone

    def queue(self, title, item_ids):
        self.queues = {**getattr(self, "queues", {}), title: list(item_ids)}

    def url(self):
        return "file"


class FakeRaters:
    """Simulated people who know the truth, and err on a fixed share of texts."""

    def __init__(self, reviewer: FileReviewer, truth: dict[str, str], overlap=1) -> None:
        self.reviewer, self.truth, self.overlap = reviewer, truth, overlap

    def answer(self, project_id, progress=no_progress):
        given = 0
        for item_id in self.reviewer.open_items(self.overlap):
            for person in range(self.overlap):
                self.reviewer.answer(item_id, f"rater-{person}", self.truth[item_id])
                given += 1
                progress(1)
        return given

    def labels_of(self, items):
        return [self.truth[i.id] for i in items]


class CentroidStudent:
    """Nearest centroid over bags of words, jittered by the seed."""

    revision = "centroid"

    def embed(self, texts, progress=no_progress):
        progress(len(texts))
        return bag(texts)

    def fit(
        self,
        train,
        eval_texts,
        labels,
        seeds,
        *,
        keep,
        on_seed,
        progress=no_progress,
        draws=None,
        start=None,
        say=no_news,
    ):
        x, ev = bag(train.texts), bag(eval_texts)
        for seed in seeds:
            rng = np.random.default_rng(seed)
            weight = train.weight
            if draws:
                weight = np.where(np.isin(np.arange(len(weight)), draws[seed].rows), weight, 0.0)
            w = (train.y * weight[:, None]).T @ (x + rng.normal(0, 0.3, x.shape))
            w /= np.maximum((train.y * weight[:, None]).sum(axis=0)[:, None], 1e-9)
            z = ev @ w.T
            p = np.exp(z - z.max(axis=1, keepdims=True))
            path = keep.get(seed)
            if path is not None:
                path.mkdir(parents=True, exist_ok=True)
                (path / "model.txt").write_text(str(seed))
            on_seed(SeedResult(seed, p / p.sum(axis=1, keepdims=True), 0.01, path))
            progress(len(train.texts))
