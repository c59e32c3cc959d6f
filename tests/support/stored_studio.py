"""A Label Studio whose projects and tasks are one file: it outlives processes, and can go away."""

import json
import pickle

import httpx
from fake_studio import FakeStudio

KEPT = ("clock", "project", "projects", "tasks", "views", "made")


class Outage:
    """From one request on, the server is away for some: the first is carried out and its answer
    lost, then nothing listens, and at last a proxy says that the server is not there yet.

    Args:
        after: requests that are answered before.
        lost: requests that are not.
    """

    def __init__(self, after, lost):
        self.after, self.lost = after, lost

    def next(self):
        self.after -= 1
        if self.after >= 0 or self.after < -self.lost:
            return None
        gone = -self.after
        return "cut" if gone == 1 else "refused" if gone < self.lost - 2 else "starting"


class StoredStudio(FakeStudio):
    """It also lists and makes projects, deletes tasks, and keeps how many answers a task needs.

    Args:
        outage: None for a server that stays.
        pass_one: called before and after each change of the file.
    """

    def __init__(self, path, outage=None, pass_one=lambda: None):
        super().__init__()
        self.path, self.outage, self.pass_one = path, outage, pass_one
        self.projects = 0
        if not path.exists():
            self._save()

    def _load(self):
        vars(self).update(pickle.loads(self.path.read_bytes()))  # noqa: S301  (ours)

    def _save(self):
        partial = self.path.with_suffix(".partial")
        partial.write_bytes(pickle.dumps({name: getattr(self, name) for name in KEPT}))
        partial.replace(self.path)

    def _answer(self, request):
        how = self.outage.next() if self.outage is not None else None
        if how == "refused":
            raise httpx.ConnectError("nobody listens", request=request)
        if how == "starting":
            return httpx.Response(502, content="<html>Bad Gateway</html>")
        self._load()
        response = super()._answer(request)
        if request.method != "GET":
            self.pass_one()
            self._save()
            self.pass_one()
        if how == "cut":
            raise httpx.ReadError("the connection was reset", request=request)
        return response

    def _found(self, request, path, params):
        if path == "/api/projects/":
            if request.method == "POST":
                self.projects += 1
                self.project = {"id": 1, **json.loads(request.content)}
                return 201, self.project
            return {"results": [self.project] * self.projects, "next": None}
        if path.startswith("/api/tasks/") and path != "/api/tasks/":
            number = int(path.split("/")[3])
            if request.method == "DELETE":
                del self.tasks[number]
            if request.method == "PATCH":
                self.tasks[number]["wanted"] = json.loads(request.content)["overlap"]
        return super()._found(request, path, params)

    def people_answer(self, truth):
        """Somebody answers each open task with the right label."""
        self._load()
        for task_id in sorted(self.tasks):
            task = self.tasks[task_id]
            if not task["answers"]:
                self.put(task_id, self.answer(task_id, truth[task["data"]["ext_id"]]))
                self.pass_one()
                self._save()


class StudioPeople:
    """Raters who answer on the server itself."""

    def __init__(self, studio, truth):
        self.studio, self.truth = studio, truth

    def answer(self, _project_id, _progress=None):
        self.studio.people_answer(self.truth)
