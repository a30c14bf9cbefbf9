import pytest

from keyhole import default_model
from keyhole.generation import load_model


@pytest.fixture(scope="session")
def loaded():
    return load_model(default_model())


@pytest.fixture
def library(tmp_path):
    from keyhole.documents.library import Library

    return Library(tmp_path / "store", quota=1 << 30)
