"""A whole campaign whose LLM and students are workers of a Ray cluster that are killed.

A process of its own, because it forks: ``python chaos_ray.py FOLDER ENCODER ADDRESS SEED LIVES``.
In each life but the last, workers are killed at random times, and in half of them the process that
runs the campaign at a random moment (see ``chaos``). Prints one line of JSON: what the campaign
came to, and what happened on the way.
"""

import json
import os
import random
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
from campaigns import make_elsewhere, no_plots, stored_votes
from chaos import Moments, finish, forked

import loop.llm.ask
from loop.campaign.lock import writer
from loop.executor.ray_actors import RayExecutor


def campaign(folder, encoder, executor=None):
    """Two rounds, asked in small lots."""
    loop.llm.ask.CHUNK = 16
    return make_elsewhere(folder, encoder, executor, rounds=2, seeds=3)


def told(ctx):
    """What a campaign amounts to, whatever happened on the way."""
    store = ctx.store
    models = ctx.config.out / "models"
    return {
        "votes": sorted(stored_votes(store)),
        "reviews": [(r.item_id, r.round_id, r.reason, r.rank) for r in store.reviews("c")],
        "gold": sorted((g.item_id, g.label) for g in store.gold("c").values()),
        "runs": sorted((r.round_id, r.arm, r.seed, r.predictions) for r in store.runs("c")),
        "gold_bought": [r.metrics and r.metrics.gold for r in store.rounds("c")],
        "tasks": sorted(ctx.reviewer._load()["tasks"]),
        "models": sorted(p.relative_to(models).as_posix() for p in models.rglob("*")),
    }


def work(folder, encoder, address, moments):
    executor = RayExecutor(address, workers=2, say=lambda line: print(line, file=sys.stderr))
    ctx = campaign(folder, encoder, executor)
    with writer(ctx.store, "c", "run"), closing(ctx):
        finish(ctx)


def workers(address):
    """Processes that are one of goldloop's workers on this cluster."""
    port, ours = address.rpartition(":")[2], []  # Ray puts the machine's own address before it
    for process in psutil.process_iter(["cmdline"]):
        if " ".join(process.info["cmdline"] or ()).startswith("ray::_Actor"):
            with suppress(psutil.Error):
                if any(word.endswith(f":{port}") for word in process.parent().cmdline()):
                    ours.append(process)
    return ours


def kill_workers(pid, address, rng, most):
    """Kills workers now and then until a process has ended; its exit code, and how many died."""
    killed, next_at = 0, time.monotonic() + rng.uniform(0.2, 6.0)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), killed
        if killed < most and time.monotonic() > next_at:
            next_at = time.monotonic() + rng.uniform(0.2, 6.0)
            if alive := workers(address):
                with suppress(psutil.Error):
                    rng.choice(alive).kill()
                    killed += 1
        time.sleep(0.02)


def main(folder, encoder, address, seed, lives):
    no_plots()
    rng = random.Random(seed)
    ended, killed = [], 0
    for life in range(lives):
        last = life == lives - 1
        n = rng.randint(1, 300) if not last and rng.random() < 0.5 else 10**9
        pid = forked(lambda n=n: work(folder, encoder, address, Moments(n, folder)))
        code, died = kill_workers(pid, address, rng, 0 if last else rng.randint(1, 3))
        ended.append(code)
        killed += died
        if code == 0:
            break
    ctx = campaign(folder, encoder)
    print(json.dumps({"came_to": told(ctx), "ended": ended, "workers_killed": killed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
