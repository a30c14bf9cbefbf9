import tempfile
from pathlib import Path

import pytest

from keyhole.documents.store import Store

_MEMORY = Path("/dev/shm")


@pytest.fixture
def root(tmp_path):
    """A directory where syncing takes no time, if there is one."""
    if not _MEMORY.is_dir():
        yield tmp_path / "store"
        return
    with tempfile.TemporaryDirectory(dir=_MEMORY, prefix="keyhole-test-") as made:
        yield Path(made) / "store"


@pytest.fixture
def store(root):
    return Store(root, 64 << 20)
