"""Rows of host memory behind a buffer on the device."""
