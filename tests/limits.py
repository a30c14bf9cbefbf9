"""Disks that are full, for tests: files may not grow beyond a limit."""

import resource
from contextlib import contextmanager


@contextmanager
def limited_files(nbytes):
    """Let no file of this process grow beyond so many bytes; writing more raises OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
