"""A call of each function in kernels/gpu, of the sizes and dtypes that matter on a GPU.

The tensors lie on the CPU: `compiling.py` compiles what the calls launch, and launches nothing.
"""

import torch

from keyhole.kernels.gpu.exact_scores import exact_scores

BF16 = torch.bfloat16


def _exact_scores() -> None:
    exact_scores(torch.zeros(8, 4, 128, dtype=BF16), torch.zeros(8, 4096, 128, dtype=BF16), 0.1)
    exact_scores(torch.zeros(8, 4, 128), torch.zeros(8, 4096, 128), 0.1)


CALLS = {"exact_scores": _exact_scores}
