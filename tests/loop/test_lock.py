import os
import signal
import subprocess
import sys
import time

import pytest

from loop.errors import BusyError
from loop.lock import writer
from loop.store import Store

HOLD = """
import sys, time
from loop.lock import writer
from loop.store import Store
with writer(Store(sys.argv[1]), "c", "run"):
    print("held", flush=True)
    time.sleep(20)
"""


def test_the_second_writer_is_told_who_holds_it_and_a_kill_lets_go(store_url):
    store = Store(store_url)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, store_url], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError) as caught, writer(store, "c", "train"):
            pass
        assert "`goldloop run`" in str(caught.value)
        assert str(holder.pid) in str(caught.value)
        with writer(store, "another", "run"):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    deadline = time.monotonic() + 5
    while True:
        try:
            with writer(store, "c", "train"):
                break
        except BusyError:
            assert time.monotonic() < deadline
    store.close()
