"""One thread for numpy's matrix products where the matrices are small.

OpenBLAS hands every product to all cores, and threads that have nothing to do spin. On matrices of
a few hundred rows or columns that takes several times the CPU time and is slower as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

P = ParamSpec("P")
R = TypeVar("R")


def one_blas_thread(work: Callable[P, R]) -> Callable[P, R]:
    """The function, with every BLAS library held to one thread while it runs.

    The limit is the process's: other Python threads see it too for that long. Searches in FAISS,
    which are large, stay outside of what is wrapped.
    """

    @wraps(work)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with threadpool_limits(limits=1, user_api="blas"):
            return work(*args, **kwargs)

    return alone
