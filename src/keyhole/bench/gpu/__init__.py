"""Benchmarks on a GPU: operations, layers and models as CUDA graphs, against torch's flash attention.

Without a GPU they run on the CPU as they are, slowly: for tests, and for no figures.
"""
