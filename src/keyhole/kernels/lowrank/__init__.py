"""Keys rebuilt from low-rank coefficients."""
