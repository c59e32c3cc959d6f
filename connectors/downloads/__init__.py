"""What goldloop fetches: packages, models, the demo's data."""
