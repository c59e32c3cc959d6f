"""A Label Studio in memory, behind an httpx transport: it serves whatever JSON it is given.

It knows the calls that sending and reading need. Its clock and its troubles are the test's.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx

from connectors.label_studio.page import UNSURE, choice_result

OLD_PAGE = f'<View><Choices name="label"><Choice value="{UNSURE}"/></Choices></View>'
USERS = [
    {"id": 1, "email": "ann@x.org"},
    {"id": 2, "email": "bob@x.org"},
]


class FakeStudio:
    """Tasks by id; the annotations of each are JSON texts, so that they can be anything.

    Attributes:
        broken: ids of tasks whose annotations the server cannot show.
        most_on_page: as TASK_API_PAGE_SIZE_MAX of a real one.
        names_people: whether it tells who its users are.
        dated: whether its answers carry a Date header.
        asked: path and parameters of every request.
    """

    def __init__(self):
        self.clock = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
        self.project = {"id": 1, "description": "", "label_config": OLD_PAGE}
        self.tasks = {}
        self.views = []
        self.broken = set()
        self.dated = True
        self.names_people = True
        self.most_on_page = 10**6
        self.asked = []
        self.made = 0
        self.status_of_broken = 500

    @property
    def transport(self):
        return httpx.MockTransport(self._answer)

    # what people do

    def add(self, item_id, **data):
        self.made += 1
        task = {"data": {"ext_id": item_id, "text": "t", **data}, "at": self.clock, "answers": []}
        self.tasks[self.made] = task
        return self.made

    def _imported(self, data):
        return self.add(data.pop("ext_id"), **data)

    def task_of(self, item_id):
        return next(i for i, t in self.tasks.items() if t["data"].get("ext_id") == item_id)

    def put(self, task_id, *answers):
        """Replaces a task's answers: JSON values, or bytes for JSON that Python would not write."""
        self.clock += timedelta(seconds=1)
        task = self.tasks[task_id]
        task["at"] = self.clock
        task["answers"] = [
            answer.decode() if isinstance(answer, bytes) else json.dumps(answer)
            for answer in answers
        ]

    def answer(self, task_id, label, *, person=1, **more):
        """An answer as Label Studio writes it."""
        self.clock += timedelta(seconds=1)
        return {
            "id": 1000 + task_id * 10 + person,
            "completed_by": person,
            "result": choice_result(label),
            "was_cancelled": False,
            "lead_time": 4.5,
            "updated_at": self.stamp(),
            **more,
        }

    def stamp(self, moment=None):
        return (moment or self.clock).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    # what the server does

    def _answer(self, request):
        path, params = request.url.path, dict(request.url.params)
        self.asked.append((path, params))
        found = self._found(request, path, params)
        status, body = found if isinstance(found, tuple) else (200, found)
        headers = {"content-type": "application/json"}
        if self.dated:
            headers["date"] = format_datetime(self.clock, usegmt=True)
        content = body if isinstance(body, (bytes, str)) else json.dumps(body)
        return httpx.Response(status, content=content, headers=headers)

    def _found(self, request, path, params):
        if path == "/api/version/":
            return {"release": "1.23.2"}
        if path == "/api/users/":
            return USERS if self.names_people else (403, {"detail": "No permission."})
        if path == "/api/projects/1/import":
            ids = [self._imported(row["data"]) for row in json.loads(request.content)]
            return 201, {"task_count": len(ids), "prediction_count": 0, "task_ids": ids}
        if path.startswith("/api/projects/1"):
            if request.method == "PATCH":
                self.project |= json.loads(request.content)
            return self.project
        if path == "/api/dm/columns/":
            ids = ["id", "completed_at", "annotators", "updated_by"]
            columns = [{"id": id_} for id_ in ids] + [{"id": "data", "children": ["text"]}]
            return {"columns": [{"id": "text", "parent": "data"}, *columns]}
        if path.startswith("/api/dm/views/"):
            if request.method == "POST":
                self.views.append({"id": len(self.views) + 1, **json.loads(request.content)})
            if request.method == "PATCH":
                number = int(path.split("/")[4])
                self.views[number - 1] |= json.loads(request.content)
            return self.views
        if path == "/api/dm/actions":
            for task_id in json.loads(request.content)["selectedItems"]["included"]:
                if not self.tasks[task_id]["answers"]:
                    del self.tasks[task_id]
            return {}
        if path == "/api/tasks/":
            return self._listed(params)
        if path.startswith("/api/tasks/"):
            number = int(path.split("/")[3])
            return {} if number in self.tasks else (404, {"detail": "Not found."})
        return {"id": 1}

    def _listed(self, params):
        ids = sorted(i for i in self.tasks if self._passes(i, params["query"]))
        size, number = min(int(params["page_size"]), self.most_on_page), int(params["page"])
        page = ids[(number - 1) * size : number * size]
        if not page and number > 1:
            return 404, {"detail": "Invalid page."}
        whole = params["fields"] == "all"
        if whole and self.broken & set(page):
            return self.status_of_broken, "<html>Server Error</html>"
        rows = ", ".join(self._row(i, whole) for i in page)
        return f'{{"tasks": [{rows}], "total": {len(ids)}}}'

    def _passes(self, task_id, query):
        for condition in json.loads(query)["filters"]["items"]:
            task, value = self.tasks[task_id], condition["value"]
            if condition["filter"] == "filter:tasks:updated_at":
                if task["at"] <= datetime.fromisoformat(value):
                    return False
            elif task["data"]["ext_id"] not in value:
                return False
        return True

    def _row(self, task_id, whole):
        task = self.tasks[task_id]
        row = {"id": task_id, "data": task["data"], "updated_at": self.stamp(task["at"])}
        if not whole:
            return json.dumps(row | {"total_annotations": len(task["answers"]), "overlap": 1})
        answers = ", ".join(task["answers"])
        return json.dumps(row)[:-1] + f', "annotations": [{answers}]}}'
