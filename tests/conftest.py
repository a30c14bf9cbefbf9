"""Settings of all tests: properties are checked on the same examples each time, and nothing is timed."""

import torch
from hypothesis import settings

settings.register_profile("keyhole", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("keyhole")

# Tensors are tiny here: handing them to several threads takes longer than the work.
torch.set_num_threads(1)
