"""Triton kernels; imported where one is used, for Triton is not there on every machine."""
