"""The unit in which files of entries are laid out, verified and counted."""

FORMAT = 1
PAGE = 4096  # bytes with one checksum


def filled(nbytes: int) -> int:
    """Bytes that so many take, in whole pages."""
    return -(-nbytes // PAGE) * PAGE
