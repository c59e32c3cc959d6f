"""Small campaigns on quick parts, for tests of the loop itself."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from fakes import CentroidStudent, FakeRaters, FileReviewer
from sqlmodel import select

from connectors.llm.recorded import RecordedAnnotator
from loop.campaign.config import Config
from loop.campaign.context import Context, Parts
from loop.campaign.store import Store
from loop.campaign.tables import Item, VoteBlock
from loop.llm.elsewhere import AnnotatorElsewhere
from loop.ports import AnnotatorSetup
from loop.report import plots

LABELS = ("bad", "good")
WORDS = {"bad": "awful poor weak sad", "good": "great fine strong happy"}


def no_plots(replace=setattr):
    """Leaves the plots out of every report; a MonkeyPatch's ``setattr`` takes that back."""
    for name in ("course_plot", "_reliability"):
        replace(plots, name, lambda *_: "")


def texts(n=120, wrong=0.3):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        label = LABELS[i % 2]
        other = LABELS[1 - i % 2]
        words = [str(w) for w in rng.choice(WORDS[label].split(), 3)]
        llm = other if rng.random() < wrong else label
        meta = {"llm": llm, "llm_2": label if rng.random() < 0.8 else other}
        rows.append(
            SimpleNamespace(text=f"{' '.join(words)} number {i}", gold=label, split=None, meta=meta)
        )
    return rows


def stored_votes(store):
    """(item id, variant hash) of every vote of every campaign, twice where it is there twice."""
    with store.transaction() as session:
        ids = {(i.campaign, i.row): i.id for i in session.exec(select(Item))}
        return [
            (ids[block.campaign, row], block.variant_hash)
            for block in session.exec(select(VoteBlock))
            for row in block.rows.tolist()
        ]


def make(tmp_path, *, url=None, raters=True, overlap=1, rows=None, **sections):
    settings = {
        "campaign": {"name": "c", "task": "t"},
        "labels": [{"name": name} for name in LABELS],
        "texts": {"source": "x.csv", "gold_column": "g"},
        "annotator": {"kind": "recorded", "columns": ["llm", "llm_2"]},
        "budget": {"labels": 30},
        "rounds": {"batch_size": 15, "rounds": 2, "audit_frac": 0.2},
        "student": {"seeds": 3, "references": ["llm_only", "random", "all_gold"]},
        "people": {"overlap": overlap},
    }
    config = Config.model_validate(settings | sections)
    config._folder = tmp_path
    store = Store(url or f"sqlite:///{tmp_path / 'c.db'}")
    reviewer = FileReviewer(tmp_path / "studio.json")
    rows = rows or texts()

    def make_raters():
        truth = {i.id: i.known_label for i in store.items("c")}
        return FakeRaters(reviewer, truth, overlap)

    parts = Parts(
        texts=lambda: rows,
        annotator=lambda: RecordedAnnotator(config.annotator.columns, config.port_labels),
        reviewer=lambda: reviewer,
        student=CentroidStudent,
        raters=make_raters if raters else None,
    )
    return Context(config, store, parts)


def make_small(tmp_path, url=None, **sections):
    """A campaign of two rounds that costs half as much, for tests that run it many times."""
    student = {"seeds": 2, "references": ["llm_only"]}
    return make(tmp_path, url=url, rows=texts(80), student=student, **sections)


def copied(folder, to):
    """A copy of a campaign that does not know the original, beside which it would not run."""
    shutil.copytree(folder, to)
    with closing(sqlite3.connect(to / "c.db", isolation_level=None)) as connection:
        connection.execute("delete from event where command = 'folder'")
    return to


def make_elsewhere(folder, encoder, executor=None, *, rounds=1, seeds=2, dies_at=None):
    """A campaign whose LLM and student work elsewhere; without an executor, in this process.

    Args:
        encoder: folder of a tiny encoder.
        dies_at: the worker that is first asked about this text dies.
    """
    from jobs import AskWords, Words
    from tiny_encoder import tiny_student

    ctx = make(
        folder,
        rows=texts(90),
        annotator={"kind": "local_lm"},
        prompt={"shots": 0, "variants": 2},
        rounds={"batch_size": 15, "rounds": rounds, "audit_frac": 0.2},
        student={"seeds": seeds, "references": [], "epochs": 1, "if_nothing_learned": "go on"},
    )
    annotator = Words()
    if executor is not None:
        setup = AnnotatorSetup({"model": "words"}, {}, ctx.config.port_labels)
        annotator = AnnotatorElsewhere(Words(), "local_lm", setup, executor)
        annotator._job = AskWords(folder, dies_at)
    student = tiny_student(encoder, epochs=1, executor=executor)
    ctx.parts = replace(
        ctx.parts, annotator=lambda: annotator, student=lambda: student, executor=executor
    )
    return ctx
