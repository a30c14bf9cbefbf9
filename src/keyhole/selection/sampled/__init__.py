"""Budgets of error: the best tokens exactly, a sample of the others, and an estimate of what that leaves."""

from keyhole.selection.sampled.reading import Sampled, read_to_error

__all__ = ["Sampled", "read_to_error"]
