"""Settings of all tests: properties are checked on the same examples each time, and nothing is timed."""

import os

import pytest
import torch
from hypothesis import settings

from keyhole.core.break_even import ALWAYS

settings.register_profile("keyhole", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("keyhole")

# Triton kernels run without a GPU in Triton's interpreter. It asks for this when it is imported, as it is by
# transformers: hence nothing of Keyhole is imported here.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Tensors are tiny here: handing them to several threads takes longer than the work.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _select_at_any_length(monkeypatch):
    """Tests are short and time nothing: `dense_below="auto"` means 0 in them."""
    monkeypatch.setattr("keyhole.engines.transformers.cache._break_even", lambda *_: ALWAYS)
