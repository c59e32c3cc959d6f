"""Experiment trackers that each measured round can be sent to: one file for each."""
