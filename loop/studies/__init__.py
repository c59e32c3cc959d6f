"""Questions beside the rounds: validation, other annotators, variance, plateau."""
