"""Parts of a package of somebody else: a strategy, an annotator, a platform and a tracker."""

import json

import numpy as np

from loop.ports import ClassProbs, Fetched, FetchedTask, RawAnnotation, no_progress


def shortest_first(pool, rng):
    """Suspicion that needs embeddings, so that it sees whether it gets them."""
    return np.linspace(1, 0, pool.n) + 0 * pool.embeddings.sum(axis=1)


shortest_first.needs = {"embeddings"}


class WordList:
    """Labels by words, which ``[annotator.options]`` gives for each label."""

    revision = "word-list-1"

    def __init__(self, setup):
        self.words = [setup.options["words"][label.name] for label in setup.labels]

    def annotate(self, variant, items):
        hits = [[1 + sum(w in item.text for w in words) for words in self.words] for item in items]
        probs = np.array(hits, dtype=float)
        probs /= probs.sum(axis=1, keepdims=True)
        return ClassProbs(probs, np.zeros(len(items)), np.zeros(len(items), dtype=np.int64))

    def most_tokens(self, variant, items):
        return np.zeros(len(items), dtype=np.int64), np.zeros(len(items), dtype=np.int64)

    def close(self):
        pass


class Crooked:
    """No annotator at all."""

    def __init__(self, setup):
        self.revision = "crooked"


class Desk:
    """A desk at which somebody answers at once, as ``[people.options]`` says."""

    def __init__(self, setup):
        self.file = setup.folder / setup.options["file"]
        self.label = setup.labels[0].name

    def open_project(self, project_id):
        if not self.file.exists():
            self.file.write_text("[]")
        return project_id or "desk"

    def send(self, tasks, progress=no_progress):
        on_it = json.loads(self.file.read_text())
        on_it += [task.item_id for task in tasks if task.item_id not in on_it]
        self.file.write_text(json.dumps(on_it))
        progress(len(tasks))
        return {task.item_id: f"t-{task.item_id}" for task in tasks}

    def fetch(self, cursor):
        tasks = tuple(map(self._answered, json.loads(self.file.read_text())))
        return Fetched(tasks, "1", whole=True)

    def _answered(self, item_id):
        task_id = f"t-{item_id}"
        answer = RawAnnotation(
            f"a-{item_id}", task_id, item_id, "clerk", self.label, False, "", 1.0, "1", None, {}
        )
        return FetchedTask(task_id, item_id, (answer,))

    def ask(self, wanted):
        pass

    def withdraw(self, item_ids):
        return set()

    def queue(self, title, item_ids):
        pass

    def url(self):
        return str(self.file)


class Diary:
    """A tracker that writes each round's accuracy into a file."""

    def __init__(self, setup):
        self.file = setup.folder / f"{setup.project}.json"

    def track(self, campaign):
        self.file.parent.mkdir(exist_ok=True)
        known = json.loads(self.file.read_text()) if self.file.exists() else {}
        new = [r for r in campaign.rounds if str(r.number) not in known]
        known |= {str(r.number): r.metrics["loop/accuracy"] for r in new}
        self.file.write_text(json.dumps(known))
        return [r.number for r in new]
