"""`bench against`: prompts, decode steps and memory of Keyhole and of other engines, in turns in one run."""
