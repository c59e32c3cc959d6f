"""Runs a whole campaign in processes that are killed at random moments, until one reaches its end.

A process of its own, because it forks: ``python chaos.py FOLDER URL SEED KILLS``. A moment is an
SQL statement, a commit, a call of the LLM, or a task or an answer that reaches Label Studio. Half
of the processes on PostgreSQL lose their connections instead, as when the server restarts. Prints
one line of JSON: what the campaign came to, and what happened on the way.
"""

import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import psycopg
from campaigns import make_small, no_plots, stored_votes
from fakes import FileReviewer
from sqlalchemy import Engine, event
from sqlmodel import select

from connectors.llm.recorded import RecordedAnnotator
from loop.campaign.context import Parts
from loop.campaign.store import Store
from loop.campaign.tables import Variant
from loop.errors import LoopError, NoStoreError
from loop.next_round import open_campaign, why_finished
from loop.round import run_round

LOST = 7
"""The exit code of a process that said in one sentence why it ended."""


def finish(ctx):
    open_campaign(ctx)
    while why_finished(ctx) is None:
        run_round(ctx)


def fingerprint(ctx):
    """What a campaign amounts to, whatever happened on the way."""
    store = ctx.store
    metrics = [r.metrics for r in store.rounds("c")]
    return {
        "votes": sorted(stored_votes(store)),
        "reviews": [(r.item_id, r.round_id, r.reason, r.rank) for r in store.reviews("c")],
        "gold": sorted((g.item_id, g.label) for g in store.gold("c").values()),
        "annotations": sorted(a.annotation_id for a in store.annotations("c")),
        "runs": sorted((r.round_id, r.arm, r.seed, r.label_set) for r in store.runs("c")),
        "gold_bought": [m.gold for m in metrics],
        "tasks": sorted(json.loads((ctx.config.out.parent / "studio.json").read_text())["tasks"]),
    }


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Moments:
    """Counts the moments of this process, and kills it at the n-th, or strikes otherwise."""

    def __init__(self, n, asked, strike=die):
        self.left, self.asked, self.strike = n, asked, strike
        event.listen(Engine, "before_cursor_execute", lambda *_: self.pass_one())
        event.listen(Engine, "commit", lambda _connection: self.pass_one())
        save = FileReviewer._save
        FileReviewer._save = lambda *args: (self.pass_one(), save(*args), self.pass_one())

    def pass_one(self):
        self.left -= 1
        if self.left == 0:
            self.strike()


class LoggingAnnotator(RecordedAnnotator):
    """Notes down what it is asked before it answers."""

    moments = None

    def annotate(self, variant, items):
        with self.moments.asked.open("a") as log:
            log.write("".join(f"{i.id} {variant.index}\n" for i in items))
        self.moments.pass_one()
        answers = super().annotate(variant, items)
        self.moments.pass_one()
        return answers


def campaign(folder, url):
    ctx = make_small(folder, url)
    columns, labels = ctx.config.annotator.columns, ctx.config.port_labels
    parts = vars(ctx.parts) | {"annotator": lambda: LoggingAnnotator(columns, labels)}
    ctx.parts = Parts(**parts)
    return ctx


def work(folder, url, n, asked):
    LoggingAnnotator.moments = Moments(n, asked)
    finish(campaign(folder, url))


def forked(do):
    """The id of a process of its own that does something; its exit code says how that ended."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        do()
        code = 0
    except LoopError as exc:
        print(exc, file=sys.stderr)
        code = LOST if "\n" not in str(exc) else 1
    except BaseException as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def child(folder, url, n, asked, disturb):
    """Runs the campaign in a process of its own; its exit code."""
    pid = forked(lambda: work(folder, url, n, asked))
    disturb()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def cut_connections(url, after_s):
    time.sleep(after_s)
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )


def stored(url):
    """The votes in the store, as the annotator's log names them."""
    try:
        store = Store(url, read_only=True)
    except NoStoreError:
        return set()
    with store.transaction() as session:
        position = {v.hash: v.position for v in session.exec(select(Variant))}
    known = {f"{item} {position[variant]}" for item, variant in stored_votes(store)}
    store.close()
    return known


def import_all(*more):
    """What a campaign imports where it needs it, once for all lives."""
    report = ("loop.report.collect", "loop.report.html")
    for name in ("faiss", "scipy.optimize", "scipy.special", *report, *more):
        importlib.import_module(name)


def main(folder, url, seed, kills):
    no_plots()
    import_all()
    rng = random.Random(seed)
    asked = folder / "asked"
    ended, twice = [], 0
    for life in range(kills + 1):
        before = stored(url)
        asked.write_text("")
        last = life == kills
        cut = url.startswith("postgresql") and not last and rng.random() < 0.5
        n = 10**9 if last or cut else rng.randint(1, 350)
        after_s = rng.uniform(0.02, 1.5)

        def disturb(cut=cut, after_s=after_s):
            if cut:
                cut_connections(url, after_s)

        code = child(folder, url, n, asked, disturb)
        ended.append(code)
        twice += len(before & set(asked.read_text().splitlines()))
        if code == 0:
            break
    ctx = make_small(folder, url)
    print(json.dumps({"came_to": fingerprint(ctx), "ended": ended, "asked_twice": twice}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
