"""What this machine's processor can do."""

from __future__ import annotations

from pathlib import Path


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 natively; elsewhere bf16 is several times slower."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    words = set(flags[: 1 << 16].split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
