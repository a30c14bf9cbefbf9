"""Triton kernels of the operations. Imported where one is used, for Triton is not there on every machine.

Their Python parts never wait for the device: operands are checked by shape and dtype, not by content. Counts
beyond a width and slots outside a cache read nothing that is not there, and give numbers without meaning.
"""
