"""Activations for a method that was not fitted to the model: those of random tokens (CHESS)."""

from __future__ import annotations

from threading import RLock

import torch
from transformers import PreTrainedModel

from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.engines.transformers.model import adapter_of
from keyhole.engines.transformers.sparse_ffn.activations import fit_activations
from keyhole.engines.transformers.sparse_ffn.obstacles import check_in_memory
from keyhole.engines.transformers.sparse_ffn.sites import gated_sites
from keyhole.feedforward import Fitted, Rule

_STAND_IN = (2, 256)  # random tokens, in place of text
_fitting = RLock()


def stand_in_activations(model: PreTrainedModel, rule: Rule, attention: bool) -> dict[str, Fitted]:
    """What is known of a model's modules from random tokens; found once for each model.

    Raises:
        UnsupportedModelError: as `fit_activations`.
    """
    for name, site in gated_sites(model).items():
        check_in_memory(name, site)

    def fit() -> dict[str, Fitted]:
        size = model.config.get_text_config(decoder=True).vocab_size
        ids = torch.randint(size, _STAND_IN, generator=torch.Generator().manual_seed(0))
        return fit_activations(model, [ids], rule=rule, attention=attention)

    key = ("activations", fingerprint(model), rule, attention)
    with _fitting:
        return adapter_of(model).memo(key, fit)
