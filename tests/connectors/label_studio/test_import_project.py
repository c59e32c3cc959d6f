"""Labels of a project that exists already in a real Label Studio become gold."""

import httpx
import pytest
from campaigns import make

from connectors.label_studio.client import Client
from connectors.label_studio.pull import PAGE_TASKS
from connectors.texts.tool_exports import answers_of, read_export
from loop.next_round import open_campaign
from loop.people.import_labels import import_labels

pytestmark = pytest.mark.slow
PAGE = """<View><Text name="body" value="$body"/>
<Choices name="mood" toName="body"><Choice value="bad"/><Choice value="good"/></Choices></View>"""


def test_a_project_and_its_exports_give_the_same_gold(label_studio, tmp_path):
    ctx = make(tmp_path)
    open_campaign(ctx)
    texts = [item.text for item in ctx.store.items("c", "pool")][:6]
    web = httpx.Client(
        base_url=label_studio.url,
        headers={"Authorization": f"Token {label_studio.token}"},
        timeout=60,
    )
    with web:
        project = web.post("/api/projects", json={"title": "old", "label_config": PAGE}).json()[
            "id"
        ]
        tasks = [{"data": {"body": text, "n": i}} for i, text in enumerate(texts)]
        web.post(f"/api/projects/{project}/import", json=tasks).raise_for_status()
        ids = [t["id"] for t in web.get("/api/tasks", params={"project": project}).json()["tasks"]]
        ids.sort()
        for i, task in enumerate(ids[:5]):
            value = {"choices": [["good", "bad"][i % 2]]}
            part = {"from_name": "mood", "to_name": "body", "type": "choices", "value": value}
            body = {"result": [part] if i < 4 else [], "was_cancelled": i == 3}
            web.post(f"/api/tasks/{task}/annotations", json=body).raise_for_status()
        for kind, name in (("JSON", "a.json"), ("JSON_MIN", "m.json"), ("CSV", "t.csv")):
            export = web.get(f"/api/projects/{project}/export", params={"exportType": kind})
            (tmp_path / name).write_bytes(export.raise_for_status().content)
    rows = Client(label_studio.url, label_studio.token).listed(
        project, "read answers", [], PAGE_TASKS, fields="all"
    )
    labels = ctx.config.label_names
    export = answers_of(list(enumerate(rows, start=1)), labels, "project")
    assert export.tool == "Label Studio"
    found = import_labels(ctx, "project", export.tool, export.answers)
    assert (found.texts, found.new) == (6, 3)
    assert found.answers == {"skipped": 1, "empty": 1, "nobody answered": 1}
    assert found.labels == {"good": 2, "bad": 1}
    for name in ("a.json", "m.json", "t.csv"):
        again = read_export(str(tmp_path / name), labels)
        assert again.tool == "Label Studio"
        same = import_labels(ctx, name, again.tool, again.answers)
        assert (same.new, same.changed, same.same) == (0, 0, 3), name
