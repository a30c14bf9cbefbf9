"""Vocabulary without state: what every other package may name."""
