"""Whole campaigns that are disturbed at random moments come to what undisturbed ones come to."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
LOST = 7


def chaos(script, folder, *how):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, SUPPORT / script, folder, *map(str, how)],
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
    ("store_url", "seed", "kills"),
    [
        ("sqlite", 0, 4),  # on PostgreSQL the servers that crash, below, stand for all
        *(
            pytest.param(database, seed, 6, marks=pytest.mark.long)
            for database in ("sqlite", "postgresql")
            for seed in range(50)
        ),
    ],
    indirect=["store_url"],
)
def test_nothing_is_lost_doubled_or_paid_twice(tmp_path, store_url, undisturbed, seed, kills):
    told, errors = chaos("chaos.py", tmp_path / "campaign", store_url, seed, kills)
    assert told["ended"][-1] == 0, errors
    assert set(told["ended"][:-1]) <= {-9, LOST}, errors
    assert told["asked_twice"] == 0
    assert told["came_to"] == undisturbed


# servers that go away


@pytest.fixture
def crashing(postgres):
    """An empty store's URL, and the folder of its server, which may be crashed."""
    name = f"test_{uuid.uuid4().hex}"
    postgres.psql(f"create database {name}; alter database {name} set synchronous_commit = on;")
    url = postgres.get_uri(name).replace("postgresql://", "postgresql+psycopg://")
    yield url, postgres.pgdata
    postgres.ensure_postgres_running()  # it is another process now


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("seed", "lives"),
    [(0, 4), *(pytest.param(seed, 6, marks=pytest.mark.long) for seed in range(1, 51))],
)
def test_servers_may_crash_and_come_back(tmp_path, crashing, undisturbed, seed, lives):
    told, errors = chaos("chaos_restarts.py", tmp_path / "campaign", *crashing, seed, lives)
    assert told["ended"][-1] == 0, errors
    assert set(told["ended"][:-1]) <= {-9, LOST}, errors
    assert told["asked_twice"] == 0
    assert told["came_to"] == undisturbed | {"projects": 1, "tabs": ["Round 1", "Round 2"]}
