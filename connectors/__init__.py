"""The outside world: one folder per kind of system, each behind a port of ``loop.ports``."""
