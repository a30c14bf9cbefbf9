"""Timing of operations, of one layer's decode step and of whole models, against the best dense calls."""
