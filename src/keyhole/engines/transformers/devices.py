"""Where a model computes, whose weights may be on disk until they are needed (accelerate)."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from keyhole.core.errors import UnsupportedModelError


def input_device(model: PreTrainedModel) -> torch.device:
    """Where the model wants its tokens: weights that are offloaded say `meta`, their hook the real device."""
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    found = (getattr(each, "execution_device", None) for each in getattr(hook, "hooks", (hook,)))
    device = next((each for each in found if each is not None), None)
    return model.device if device is None else torch.device(device)


def check_has_weights(model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError for weights on the meta device that nothing brings into memory."""
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return
    missing = next((name for name, weight in model.named_parameters() if weight.is_meta), None)
    if missing is not None:
        raise UnsupportedModelError(
            f"{missing} of this {type(model).__name__} is on the meta device: it has no weights; load it "
            "with from_pretrained, which also offloads to disk by device_map and offload_folder"
        )
