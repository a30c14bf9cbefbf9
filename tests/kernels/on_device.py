"""Lets operations whose operands lie on the CPU run their Triton kernels on a GPU, where there is one."""

import inspect
from functools import wraps

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from keyhole import kernels


def move_operations(monkeypatch) -> None:
    """Without a GPU nothing changes: kernels are interpreted."""
    if not torch.cuda.is_available():
        return
    for name in kernels.__all__:
        operation = getattr(kernels, name)
        if inspect.isfunction(operation) and "impl" in inspect.signature(operation).parameters:
            monkeypatch.setattr(kernels, name, _moved(operation))


def _moved(operation):
    @wraps(operation)
    def run(*args, **kwargs):
        if kwargs.get("impl") != "triton":
            return operation(*args, **kwargs)
        pairs: list[tuple[Tensor, Tensor]] = []

        def there(value):
            if not isinstance(value, Tensor) or value.is_cuda:
                return value
            pairs.append((value, _copy(value)))
            return pairs[-1][1]

        found = operation(*tree_map(there, args), **tree_map(there, kwargs))
        for here, far in pairs:
            if 0 not in here.stride():
                here.copy_(far)  # what an operation writes to
        return tree_map(lambda value: value.cpu() if isinstance(value, Tensor) else value, found)

    return run


def _copy(tensor: Tensor) -> Tensor:
    """The tensor on the GPU, with the memory around it: a read of poison is to show."""
    memory = tensor.untyped_storage().cuda()
    view = torch.empty(0, dtype=tensor.dtype, device="cuda")
    return view.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())
