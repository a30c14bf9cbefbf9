"""Products of weights in the form they are shipped in."""
