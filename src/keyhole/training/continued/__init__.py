"""Continued training of a model whose attention reads selected blocks."""
