"""Settings of all tests: properties are checked on the same examples each time, and nothing is timed."""

import os

import torch
from hypothesis import settings

settings.register_profile("keyhole", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("keyhole")

# Triton kernels run without a GPU in Triton's interpreter. It asks for this when it is imported, as it is by
# transformers: hence nothing of Keyhole is imported here.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Tests are short: `dense_below="auto"` selects at any length, in this process and in those it starts.
os.environ["KEYHOLE_COSTS"] = "zero"

# Tables are as wide as a pipe allows, whatever terminal the tests run in.
os.environ.pop("COLUMNS", None)

# Tensors are tiny here: handing them to several threads takes longer than the work.
torch.set_num_threads(1)


def pytest_collection():
    """`nosa` has faint importance heads where none is given, so that it is tested as all methods are."""
    from keyhole.methods import Nosa
    from tests.heads import heads_at_hand

    Nosa.heads = heads_at_hand
