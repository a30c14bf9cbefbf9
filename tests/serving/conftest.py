import copy

import pytest

from keyhole import default_model
from keyhole.documents.library import Library
from keyhole.generation import Loaded, load_model
from keyhole.serving.scheduler import Scheduler


@pytest.fixture(scope="session")
def loaded():
    return load_model(default_model())


@pytest.fixture
def talking(loaded):
    """The model with a tokenizer that has a chat template."""
    tokenizer = copy.deepcopy(loaded.tokenizer)
    turn = "{{ message.role }}: {{ message.content }}\n"
    tokenizer.chat_template = "{% for message in messages %}" + turn + "{% endfor %}assistant:"
    return Loaded(loaded.model, tokenizer)


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path / "store", quota=1 << 30)


@pytest.fixture
def serve(loaded):
    """Makes schedulers, which are closed at the end."""
    made = []

    def served(model=loaded, **options):
        made.append(Scheduler(model, **{"memory": 1 << 30} | options))
        return made[-1]

    yield served
    for scheduler in made:
        scheduler.close(drain=False)
