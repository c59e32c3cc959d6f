"""The LLM asked: prompts, votes, calibration, what further answers are worth and cost."""
