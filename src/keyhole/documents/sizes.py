"""What a document will take, before it is read."""

from __future__ import annotations

from transformers import PreTrainedModel

from keyhole.engines.transformers import KeyholeCache, served_layers
from keyhole.engines.transformers.devices import input_device
from keyhole.engines.transformers.sizes import attention_sizes
from keyhole.storage.formats.base import Full, TokenSpec
from keyhole.storage.placed import PlacedStorage


def stored_bytes(cache: KeyholeCache, model: PreTrainedModel, tokens: int) -> int:
    """Bytes of the keys and values of so many tokens in the form of a cache; 0 where sizes are not known."""
    sizes = attention_sizes(model.config)
    if sizes is None:
        return 0
    kind = TokenSpec(sizes.kv_heads, sizes.head_dim, sizes.head_dim, model.dtype, input_device(model))
    forms = [
        one.storage.form if isinstance(one.storage, PlacedStorage) else Full() for one in served_layers(cache)
    ]
    return int(sum(form.token_bytes(kind) for form in forms) * kind.heads * tokens)
