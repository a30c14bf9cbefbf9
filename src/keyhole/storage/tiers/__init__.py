"""Rows that grow on a tier: device, host, disk."""
