"""Whole campaigns that are killed at random moments come to what an undisturbed one comes to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
LOST = 7


def chaos(folder, url, seed, kills):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, SUPPORT / "chaos.py", folder, url, str(seed), str(kills)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SUPPORT.parents[1]), "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    sys.path.insert(0, str(SUPPORT))
    from campaigns import make_small
    from chaos import fingerprint, finish

    ctx = make_small(folder)
    finish(ctx)
    return json.loads(json.dumps(fingerprint(ctx)))


@pytest.mark.timeout(3000)  # a busy machine is no failure
@pytest.mark.parametrize(
    ("seed", "kills"),
    [(0, 4), *(pytest.param(seed, 6, marks=pytest.mark.long) for seed in range(50))],
)
def test_nothing_is_lost_doubled_or_paid_twice(tmp_path, store_url, undisturbed, seed, kills):
    told, errors = chaos(tmp_path / "campaign", store_url, seed, kills)
    assert told["ended"][-1] == 0, errors
    assert set(told["ended"][:-1]) <= {-9, LOST}, errors
    assert told["asked_twice"] == 0
    assert told["came_to"] == undisturbed
