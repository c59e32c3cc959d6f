"""Signals of suspicion, one family per file."""
