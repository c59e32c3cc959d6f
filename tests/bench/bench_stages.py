"""What the store adds to the first stages of a round on a large pool.

    python tests/bench/bench_stages.py [--items 100000]

A campaign of made-up texts whose LLM labels (5 prompts, with probabilities) are recorded, with
embeddings as in ``bench_scoring`` and SQLite on this disk. CPU time of each stage as a whole and of
the strategies in it; the rest is ours: reading and writing the store, and moving rows about. The
seconds include what waiting for the disk and for other work on the machine costs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from bench_scoring import CLASSES, VARIANTS, made_up_embeddings, pool_of
from numpy.typing import NDArray

from connectors.llm.recorded import RecordedAnnotator
from loop import next_round
from loop import round as stages
from loop.campaign.config import Config
from loop.campaign.context import Context, Parts
from loop.campaign.store import Store
from loop.ports import Progress, no_progress

LABELS = tuple(f"class {c}" for c in range(CLASSES))
TIMED = ("select_batch", "fuse_ranks")


class GivenEmbeddings:
    """A student that only embeds, and for that looks up what it was given."""

    revision = "given"

    def __init__(self, embeddings: NDArray[np.float32]) -> None:
        self._embeddings = embeddings

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> NDArray[np.float32]:
        """(n, d) by the number at the end of each text."""
        progress(len(texts))
        return self._embeddings[[int(text.rsplit(" ", 1)[1]) for text in texts]]


def campaign(folder: Path, n: int) -> Context:
    """A campaign of n pool texts and 100 test texts."""
    embeddings = made_up_embeddings(n + 100)
    pool = pool_of(embeddings)
    columns = [f"llm_{v}" for v in range(VARIANTS)]
    rows = [
        SimpleNamespace(
            text=f"A made-up text of about the length of a tweet, and nobody said it, number {i}",
            gold=None,
            split="test" if i >= n else "pool",
            meta={
                column: dict(zip(LABELS, pool.probs[i, v].tolist(), strict=True))
                for v, column in enumerate(columns)
            },
        )
        for i in range(n + 100)
    ]
    config = Config.model_validate(
        {
            "campaign": {"name": "large", "task": "t"},
            "labels": [{"name": name} for name in LABELS],
            "texts": {"source": "made-up.csv", "split_column": "split"},
            "annotator": {"kind": "recorded", "columns": columns},
            "budget": {"labels": 1000},
            "rounds": {"batch_size": 1000},
            "student": {"references": []},
        }
    )
    config._folder = folder
    parts = Parts(
        texts=lambda: rows,  # type: ignore[arg-type, return-value]
        annotator=lambda: RecordedAnnotator(columns, config.port_labels),
        reviewer=lambda: mock.Mock(),
        student=lambda: GivenEmbeddings(embeddings),  # type: ignore[arg-type, return-value]
    )
    return Context(config, Store(f"sqlite:///{folder / 'large.db'}"), parts)


@contextmanager
def clock(spent: dict[str, float]) -> Iterator[None]:
    """Adds up the CPU time that the strategies take."""

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent["strategies"] += time.process_time() - began

        return call

    from strategies import STRATEGIES
    from strategies.signals import students

    out_of_fold = timed(students.out_of_fold_probs)
    with (
        mock.patch.dict(STRATEGIES, {name: timed(f) for name, f in STRATEGIES.items()}),
        mock.patch.object(students, "out_of_fold_probs", out_of_fold),
        mock.patch.multiple(stages, **{name: timed(getattr(stages, name)) for name in TIMED}),
    ):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=100_000)
    given = parser.parse_args()
    print("| stage | s | CPU-s | of that strategies | ours | ours, CPU-ms per 1,000 texts |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        ctx = campaign(Path(folder), given.items)
        work: dict[str, Callable[[], object]] = {
            "import": lambda: next_round.open_campaign(ctx),
            **{
                name: lambda name=name: stages.run_stage(ctx, name)  # type: ignore[misc]
                for name in ("annotate", "score", "select")
            },
        }
        for name, step in work.items():
            spent = {"strategies": 0.0}
            began, cpu = time.monotonic(), time.process_time()
            with clock(spent):
                step()
            seconds, total = time.monotonic() - began, time.process_time() - cpu
            ours = total - spent["strategies"]
            print(
                f"| {name} | {seconds:.1f} | {total:.1f} | {spent['strategies']:.1f} | {ours:.1f}"
                f" | {1e6 * ours / given.items:.0f} |",
                flush=True,
            )
        ctx.store.close()


if __name__ == "__main__":
    main()
