"""Decode steps whose keys and values come from a slower place."""
