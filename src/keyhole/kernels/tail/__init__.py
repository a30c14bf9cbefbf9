"""Attention over what a step does not read, by clusters of keys."""
