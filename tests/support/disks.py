"""Disks that are small or cannot be written, for tests that may mount some."""

import resource
import subprocess
from contextlib import contextmanager

import pytest


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"`{' '.join(map(str, command))}` is not allowed here: {done.stderr.strip()}")


@contextmanager
def small_disk(folder, kib):
    """A disk of its own at ``folder``."""
    _run("mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder)
    try:
        yield
    finally:
        _run("umount", "-l", folder)


def enlarge(folder, kib):
    """Makes room on a small disk."""
    _run("mount", "-o", f"remount,size={kib}k", folder)


@contextmanager
def read_only_disk(folder):
    """``folder`` as a disk that cannot be written; what it holds stays."""
    _run("mount", "--bind", folder, folder)
    try:
        _run("mount", "-o", "remount,ro,bind", folder)
        yield
    finally:
        _run("umount", "-l", folder)


@contextmanager
def file_size_limit(size_bytes):
    """No file of this process can grow beyond the size."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
