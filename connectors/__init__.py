"""The outside world: one file per system, each implementing a port of ``loop.ports``."""
