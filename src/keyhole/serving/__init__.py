"""Many requests at once on one model: prompts in blocks between the decode steps of others."""

# The scheduler imports torch, requests do not need it: each is imported from its module.
