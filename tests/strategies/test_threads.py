"""Small matrices are multiplied by one thread, and only they."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from loop.bench import error_predictor
from loop.student import frozen_student as frozen
from strategies.signals import students
from strategies.threads import one_blas_thread


def blas_threads():
    return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


@pytest.fixture
def two_threads():
    with threadpool_limits(limits=2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("this BLAS library has one thread")
        yield


def test_the_limit_ends_with_the_work(two_threads):
    assert one_blas_thread(blas_threads)() == {1}
    assert blas_threads() == {2}

    @one_blas_thread
    def fails(_x):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails(1)
    assert blas_threads() == {2}


@pytest.mark.parametrize("name", ["out_of_fold_probs", "error_predictor", "frozen"])
def test_students_and_the_predictor_take_one_thread(two_threads, monkeypatch, name):
    seen = []
    module, inner = {
        "out_of_fold_probs": (students, "_second_moment"),
        "error_predictor": (error_predictor, "fit_logistic"),
        "frozen": (frozen, "fit_heads"),
    }[name]

    def watch(real):
        def watched(*args, **kwargs):
            seen.append(blas_threads())
            return real(*args, **kwargs)

        return watched

    monkeypatch.setattr(module, inner, watch(getattr(module, inner)))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)).astype(np.float32)
    y = np.arange(60) % 2
    if name == "out_of_fold_probs":
        students.out_of_fold_probs(x, y, np.ones(60), 2, seeds=1, rng=rng)
    elif name == "error_predictor":
        error_predictor.error_predictor(x.astype(float), y[:20] == 1, np.arange(20), rng=rng)
    else:
        frozen.FrozenHeads().probs(x, np.eye(2)[y], np.ones(60), x, [0])
    assert seen
    assert all(threads == {1} for threads in seen)
    assert blas_threads() == {2}
