"""Small jobs for executors; workers import them."""

import os
import pickle
import signal
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loop.errors import StudentError
from loop.ports import ClassProbs, Resources, no_news, no_progress

LABELS = ("bad", "good")


@dataclass(frozen=True, eq=False)
class Square:
    """Squares numbers; notes in a folder that it was loaded, and what it was asked.

    Attributes:
        deaths: number -> how many workers die over it.
    """

    folder: Path
    deaths: tuple[tuple[int, int], ...] = ()

    def load(self):
        note(self.folder, "loaded")
        return self.square

    def square(self, number, progress, say):
        asked = note(self.folder, f"asked-{number}")
        progress(2)
        if asked <= dict(self.deaths).get(number, 0):
            say("dying")  # after the progress
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        if number < 0:
            raise StudentError(f"There is no root of {number}.")
        if number == 13:
            raise RuntimeError("unlucky")
        if number == 99:
            say(f"{os.getpid()} sleeps")
            time.sleep(600)
        if number == 98:
            say(f"{os.getpid()} works")
            while True:  # as training does, without a word
                pass
        progress(3)
        say(f"{number} is squared")
        return number * number, os.getpid()


def note(folder, what):
    """Notes that something happened; how often it has."""
    (folder / f"{what}.{os.getpid()}.{time.monotonic_ns()}").touch()
    return len(list(folder.glob(f"{what}.*")))


@dataclass(frozen=True, eq=False)
class AskWords:
    """Stands for ``loop.llm.elsewhere.AskTexts``: its answers depend on the texts alone.

    Attributes:
        dies_at: the worker that is first asked about this text dies; None for nobody.
    """

    folder: Path
    dies_at: str | None = None

    def load(self):
        return self.answer

    def answer(self, asked, progress, say):
        if asked.count:
            tokens = np.full(len(asked.items), 10)
            return tokens, np.zeros_like(tokens)
        note(self.folder, f"lot-{asked.variant.index}-{asked.items[0].id}")
        if any(i.text == self.dies_at for i in asked.items) and note(self.folder, "dies") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return words_answer(asked.variant, asked.items)


def words_answer(variant, items):
    """Class probabilities by a hash of variant and text."""
    odds = np.array(
        [
            [zlib.crc32(f"{variant.index}{label}{i.text}".encode()) % 97 + 3 for label in LABELS]
            for i in items
        ],
        dtype=np.float64,
    )
    probs = odds / odds.sum(axis=1, keepdims=True)
    return ClassProbs(probs, np.zeros(len(items)), np.full(len(items), 10))


class Words:
    """The same answers in this process."""

    revision = "words"

    def annotate(self, variant, items):
        return words_answer(variant, items)

    def most_tokens(self, variant, items):
        return np.full(len(items), 10), np.zeros(len(items), dtype=np.int64)

    def close(self):
        pass


def travelled(what):
    """As it is after a way through pipes."""
    return pickle.loads(pickle.dumps(what))  # noqa: S301


class Unruly:
    """An executor elsewhere that hands every result over twice, those of four blocks backwards."""

    elsewhere = True
    room = Resources(workers=4)

    def __init__(self):
        self.asked = []

    def map(self, job, blocks, resources, *, progress=no_progress, say=no_news):
        work, number, held = travelled(job).load(), 0, []
        self.asked.append((type(job).__name__, resources))
        for block in blocks:
            if block is not None:
                for _ in range(2):
                    answer = work(travelled(block), progress, say)
                    held.insert(0, (number, travelled(answer)))
                number += 1
            if block is None or len(held) == 8:
                yield from held
                held = []
        yield from held

    def close(self):
        pass
