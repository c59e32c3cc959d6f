"""Strategies replayed side by side at equal budget."""
