"""Whole campaigns that are disturbed at random moments come to what undisturbed ones come to."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
PATH = os.environ.get("PYTHONPATH")
LOST = 7


def chaos(script, folder, *how):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, SUPPORT / script, folder, *map(str, how)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(SUPPORT.parents[1]), PATH])),
            "OPENBLAS_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "error ignored" not in done.stderr
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


# a cluster whose workers are killed


def wait_for(address):
    host, port = address.split(":")
    deadline = time.monotonic() + 120
    while True:
        try:
            return socket.create_connection((host, int(port))).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Ray cluster on this machine, whose workers can import the tests' jobs; its address."""
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tempfile.mkdtemp(prefix="goldloop-tests-")  # sockets lie in it: a short path
    head = ["--head", "--block", "--node-ip-address=127.0.0.1", f"--port={address[10:]}"]
    more = ["--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}"]
    paths = [str(SUPPORT.parents[1]), str(SUPPORT), PATH]
    with subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *head, *more],
        stdout=subprocess.DEVNULL,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        },
    ) as process:
        wait_for(address)
        yield address
        process.terminate()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def on_this_machine(tmp_path_factory, tiny):
    """What the same campaign comes to without a cluster."""
    sys.path.insert(0, str(SUPPORT))
    from chaos import finish
    from chaos_ray import campaign, told

    ctx = campaign(tmp_path_factory.mktemp("here"), tiny)
    finish(ctx)
    return json.loads(json.dumps(told(ctx)))


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(20))
def test_workers_of_a_cluster_may_die(tmp_path, tiny, cluster, on_this_machine, one_thread, seed):
    told, errors = chaos("chaos_ray.py", tmp_path / "campaign", tiny, cluster, seed, 4)
    assert told["ended"][-1] == 0, errors
    assert set(told["ended"][:-1]) <= {-9, LOST}, errors
    assert told["came_to"] == on_this_machine
