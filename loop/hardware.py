"""What this machine's processors can do."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 natively; elsewhere bf16 is several times slower."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    words = set(flags[: 1 << 16].split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def cores() -> int:
    """CPU cores that this process may use: its affinity and its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()[:2]
        allowed = min(allowed or 1, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup here, or no quota ("max")
        pass
    return allowed or 1
