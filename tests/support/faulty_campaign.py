"""One `goldloop run` on quick parts but a real Label Studio, in a process that may be killed."""

from __future__ import annotations

import os
import signal
import sys
from types import SimpleNamespace

LABELS = ("bad", "good")
NAME = "faulty"


def texts(n=24):
    words = {"bad": "awful poor weak", "good": "great fine strong"}
    return [
        SimpleNamespace(
            text=f"{words[LABELS[i % 2]]} number {i}",
            gold=LABELS[i % 2],
            split="test" if i % 4 == 3 else "pool",
            meta={"llm": LABELS[(i // 3) % 2]},
        )
        for i in range(n)
    ]


def config_of(folder):
    from loop.campaign.config import Config

    config = Config.model_validate(
        {
            "campaign": {"name": NAME, "task": "t"},
            "labels": [{"name": name} for name in LABELS],
            "texts": {"source": "x.csv", "gold_column": "g", "split_column": "s"},
            "annotator": {"kind": "recorded", "columns": ["llm"]},
            "strategy": {"signals": ["margin"]},
            "budget": {"labels": 10},
            "rounds": {"batch_size": 5, "rounds": 2, "audit_frac": 0.2},
            "student": {"seeds": 2, "references": []},
            "people": {"overlap": 1, "check_frac": 0.0},
        }
    )
    config._folder = folder
    return config


def run(folder, url, token, campaign_id, die, hurry):
    """Runs the loop as far as it goes; exits with 0, or 1 after one of our own errors.

    Args:
        die: (stage, moment) at which the process kills itself, or None.
        hurry: first end a round that waits for people, and take back what nobody answered, as
            ``goldloop pull --close --withdraw`` does.
    """
    from campaigns import no_plots
    from fakes import CentroidStudent

    from connectors.label_studio import pull as label_studio_pull
    from connectors.label_studio import push as label_studio_push
    from connectors.label_studio import reviewer as label_studio
    from connectors.label_studio.reviewer import LabelStudioReviewer
    from connectors.llm.recorded import RecordedAnnotator
    from loop.campaign.context import Context, Parts
    from loop.campaign.lock import writer
    from loop.campaign.store import Store
    from loop.errors import LoopError
    from loop.next_round import open_campaign, why_finished
    from loop.people.answers import withdraw_unanswered
    from loop.round import RUN, close_early, run_round, run_stage

    no_plots()
    label_studio_pull.PAGE_TASKS = 4  # several pages even for few tasks
    label_studio_push.BATCH_TASKS = 3
    config = config_of(folder)
    store = Store(f"sqlite:///{folder / 'faulty.db'}")

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    if die is not None:
        stage, moment = die
        real, advance, send = RUN.get(stage), Store.advance, label_studio_push.Push._import_once

        def dying(ctx, round_):
            if moment == "before":
                kill()
            done = real(ctx, round_)
            if moment == "after":
                kill()
            return done

        def dying_advance(self, session, round_, next_stage):
            if round_.stage == stage and moment == "in the transaction":
                kill()
            advance(self, session, round_, next_stage)

        def dying_send(self, tasks):
            found = send(self, tasks)
            if stage == "push" and moment == "after an import":
                kill()
            return found

        take_back = label_studio.withdraw

        def dying_withdraw(client, project, item_ids):
            if moment == "before":
                kill()
            gone = take_back(client, project, item_ids)
            kill()
            return gone

        if stage == "withdraw":
            label_studio.withdraw = dying_withdraw
        else:
            RUN[stage] = dying
        Store.advance = dying_advance
        label_studio_push.Push._import_once = dying_send
    reviewer = LabelStudioReviewer(
        url,
        token,
        project_title="faults",
        campaign_id=campaign_id,
        labels=config.port_labels,
        task="t",
        patience_s=1.0,
        timeout_s=1.5,
    )
    parts = Parts(
        texts=texts,
        annotator=lambda: RecordedAnnotator(config.annotator.columns, config.port_labels),
        reviewer=lambda: reviewer,
        student=CentroidStudent,
    )
    try:
        with writer(store, NAME, "run"):
            ctx = Context(config, store, parts)
            open_campaign(ctx)
            if hurry:
                last = store.last_round(NAME)
                if last is not None and last.stage == "pull":
                    last = run_stage(ctx, "pull")
                    if last.stage == "pull":
                        close_early(ctx, last)
                        run_stage(ctx, "pull")
                withdraw_unanswered(ctx)
            while why_finished(ctx) is None:
                if run_round(ctx).stage != "done":
                    break
    except LoopError as exc:
        print(exc, file=sys.stderr)
        os._exit(1)
    os._exit(0)
