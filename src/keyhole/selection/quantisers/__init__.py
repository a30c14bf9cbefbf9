"""Quantisers that indexes are made with: k-means, product and whole-key codebooks, their files."""
