"""Product quantisation: codes, their scan, and the choice of the best."""
