"""People asked: what they get, what they answer, how gold comes of it."""
