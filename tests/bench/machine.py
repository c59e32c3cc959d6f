"""What a machine can do and what a run takes: matrix rate, memory of a process and its children."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INTERVAL_S = 0.5


def matrix_rate(
    shape: tuple[int, int, int], dtype: str, *, processes: int, device: str, seconds: float = 2.0
) -> float:
    """Floating-point operations a second of torch's matrix product, over all processes.

    Args:
        shape: (m, k, n) of the product.
        dtype: of torch, such as "bfloat16".
        processes: side by side, of one thread each.
    """
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(processes), context.Queue()
    job = (shape, dtype, device, seconds, barrier, rates)
    started = [context.Process(target=_multiply, args=job) for _ in range(processes)]
    for process in started:
        process.start()
    found = [rates.get(timeout=300) for _ in started]
    for process in started:
        process.join()
    return sum(found)


def _multiply(
    shape: tuple[int, int, int], dtype: str, device: str, seconds: float, barrier: Any, rates: Any
) -> None:
    import torch

    torch.set_num_threads(1)
    m, k, n = shape
    a = torch.randn(m, k).to(device, getattr(torch, dtype))
    b = torch.randn(k, n).to(device, getattr(torch, dtype))
    a @ b
    barrier.wait(timeout=300)
    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        for _ in range(10):
            a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        done += 10
    rates.put(2 * m * k * n * done / spent)


@contextmanager
def peak_memory(pid: int) -> Iterator[list[float]]:
    """The most memory, in bytes, that a process and its descendants held together meanwhile.

    Pages that they share count once (proportional set size), sampled every half second.

    Yields:
        A list that holds the peak, once the block has ended.
    """
    peak, found, over = 0.0, [], threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(INTERVAL_S):
            peak = max(peak, sum(_pss(member) for member in _family(pid)))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        found.append(peak)


def _family(pid: int) -> list[int]:
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        children[parent].append(int(stat.parent.name))
    family = [pid]
    for member in family:
        family += children[member]
    return family


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(x.split()[1]) * 1024 for x in lines if x.startswith("Pss:")), 0.0)
