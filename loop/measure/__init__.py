"""What a round is worth: stability, accuracy, intervals, quality of the LLM's labels."""
