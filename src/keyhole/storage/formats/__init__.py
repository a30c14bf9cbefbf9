"""How tokens make rows: full precision, 8 and 4 bits."""
