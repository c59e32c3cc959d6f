"""People who label in Label Studio, real and simulated ones."""
