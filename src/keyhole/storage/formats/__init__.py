"""How tokens make rows: full precision, and 8, 4, 3 and 2 bits."""
