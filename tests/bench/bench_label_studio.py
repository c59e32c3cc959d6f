"""How quickly tasks reach Label Studio and answers come back, against what the server can do.

For each size: goldloop's push against one bulk import of the same tasks after another, and an
incremental pull after 10 % were answered, and after 100 changes more, against the server's full
export. Raw import and export are timed on the same server, in turn with goldloop's.

    python tests/bench/bench_label_studio.py [--sizes 1000 10000] [--repeats 1]
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from connectors.label_studio import server as label_studio_server
from connectors.label_studio.page import choice_result
from connectors.label_studio.push import BATCH_TASKS
from connectors.label_studio.reviewer import LabelStudioReviewer
from loop.ports import ReviewTask
from loop.prompt import Label

LABELS = [Label("positive"), Label("negative")]
TEXT = "The room was clean, the staff were kind, and breakfast was better than expected. " * 3


def tasks(n: int) -> list[ReviewTask]:
    """Tasks of the length of a short review."""
    return [
        ReviewTask(f"{i:020d}", f"{TEXT} {i}", 1, i, "", LABELS[i % 2].name, 0.5) for i in range(n)
    ]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def raw_import(api: httpx.Client, n: int) -> float:
    """The server's own bulk import, batch after batch, nothing looked up."""
    made = api.post(
        "/api/projects/",
        json={
            "title": "raw",
            "label_config": '<View><Text name="text" value="$text"/><Choices name="label"'
            ' toName="text"><Choice value="positive"/><Choice value="negative"/></Choices></View>',
        },
    )
    project = made.raise_for_status().json()["id"]

    def work() -> None:
        for start in range(0, n, BATCH_TASKS):
            body = [
                {"data": {"ext_id": t.item_id, "text": t.text, "round": 1}}
                for t in tasks(n)[start : start + BATCH_TASKS]
            ]
            api.post(f"/api/projects/{project}/import", json=body).raise_for_status()

    seconds, _ = timed(work)
    api.delete(f"/api/projects/{project}/").raise_for_status()
    return seconds


def export(api: httpx.Client, project: str) -> list[Any]:
    """Everything, by the server's quick export."""
    answer = api.get(
        f"/api/projects/{project}/export",
        params={"exportType": "JSON", "download_all_tasks": "true"},
    )
    return list(answer.raise_for_status().json())


PACE_S = 5.0  # between two answers


def answer_many(database: Path, task_ids: list[str], begin: float) -> float:
    """Answers straight in the database: by the API 5,000 of them would take 20 minutes.

    Args:
        begin: when the first is given; the others follow at the pace of people.
    Returns:
        When the last was given.
    """
    import json
    import uuid

    with sqlite3.connect(database, timeout=60) as connection:
        columns = [row[1] for row in connection.execute("pragma table_info(task_completion)")]
        (template,) = connection.execute("select * from task_completion limit 1").fetchall()
        row = dict(zip(columns, template, strict=True))
        rows, moments = [], []
        for number, task_id in enumerate(task_ids):
            given = datetime.fromtimestamp(begin + number * PACE_S, UTC)
            moment = given.strftime("%Y-%m-%d %H:%M:%S.%f")
            moments.append(moment)
            new = row | {"task_id": int(task_id), "created_at": moment, "updated_at": moment}
            new["result"] = json.dumps(choice_result("positive"))
            new["unique_id"] = uuid.uuid4().hex
            del new["id"]
            rows.append(new)
        names = [c for c in columns if c != "id"]
        marks = ", ".join("?" * len(names))
        connection.executemany(
            f"insert into task_completion ({', '.join(names)}) values ({marks})",  # noqa: S608
            [[r[name] for name in names] for r in rows],
        )
        connection.executemany(
            "update task set updated_at = ?, total_annotations = 1, is_labeled = 1 where id = ?",
            [(m, int(task_id)) for m, task_id in zip(moments, task_ids, strict=True)],
        )
    return begin + len(task_ids) * PACE_S


def run(server: label_studio_server.ServerInfo, n: int) -> dict[str, float]:
    """One size, on an open server."""
    with httpx.Client(
        base_url=server.url, headers={"Authorization": f"Token {server.token}"}, timeout=1800
    ) as api:
        before = raw_import(api, n)
        reviewer = LabelStudioReviewer(
            server.url,
            server.token,
            project_title="bench",
            campaign_id=f"bench-{n}-{time.time_ns()}",
            labels=LABELS,
            task="Which?",
            timeout_s=1800,
        )
        project = reviewer.open_project(None)
        batch = tasks(n)
        push, sent = timed(lambda: reviewer.send(batch))
        raw = statistics.mean([before, raw_import(api, n)])
        assert len(sent) == n
        again, _ = timed(lambda: reviewer.send(batch))
        first, fetched = timed(lambda: reviewer.fetch(None))
        ids = [sent[t.item_id] for t in batch]
        time.sleep(12)  # the cursor's overlap shall not take in the import
        one = api.post(
            f"/api/tasks/{ids[0]}/annotations/", json={"result": choice_result("positive")}
        )
        one.raise_for_status()
        cursor = reviewer.fetch(fetched.cursor).cursor
        database = server.data_dir / "data" / "label_studio.sqlite3"
        end = answer_many(database, ids[1 : n // 10], time.time() + 1)
        tenth, fetched = timed(lambda: reviewer.fetch(cursor))
        assert sum(bool(t.annotations) for t in fetched.tasks) == n // 10
        cursor = fetched.cursor
        answer_many(database, ids[n // 2 : n // 2 + 100], end)
        hundred, fetched = timed(lambda: reviewer.fetch(cursor))
        changed = len(fetched.tasks)
        whole, everything = timed(lambda: export(api, project))
        assert len(everything) == n
        reviewer.delete_project()
    return {
        "raw import s": raw,
        "push s": push,
        "push / raw speed": raw / push,
        "push again s": again,
        "full pull s": first,
        "pull of 10 % s": tenth,
        "pull of 100 s": hundred,
        "tasks in it": changed,
        "export s": whole,
        "export / pull of 100": whole / hundred,
    }


def main() -> None:
    """Prints a table, one column per size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        server = label_studio_server.up(data_dir=Path(folder) / "server")
        try:
            for n in options.sizes:
                runs = [run(server, n) for _ in range(options.repeats)]
                found.append({key: statistics.median(r[key] for r in runs) for key in runs[0]})
                print(n, {key: round(value, 3) for key, value in found[-1].items()}, flush=True)
        finally:
            label_studio_server.down(data_dir=Path(folder) / "server")
    print(f"{'':24s}" + "".join(f"{n:>12,d}" for n in options.sizes))
    for key in found[0]:
        print(f"{key:24s}" + "".join(f"{column[key]:12.2f}" for column in found))


if __name__ == "__main__":
    main()
