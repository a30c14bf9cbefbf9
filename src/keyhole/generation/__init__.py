"""Answers from a model: prompts in chunks, decode steps, sampling, stop tokens."""
