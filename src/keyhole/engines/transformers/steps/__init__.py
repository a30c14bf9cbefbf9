"""Decode steps in which native code computes all but attention."""
