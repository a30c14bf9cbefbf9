"""Modules that skip weights in decode steps (CHESS)."""
