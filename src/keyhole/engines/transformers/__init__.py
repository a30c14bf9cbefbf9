"""Hugging Face transformers, by its public registries."""

from keyhole.engines.transformers.attach import attach
from keyhole.engines.transformers.attachment import Attachment
from keyhole.engines.transformers.cache import activated, footprint, served_layers, usage
from keyhole.engines.transformers.deprecated import load_cache, make_cache, save_cache
from keyhole.engines.transformers.graphs import captured, captured_generate
from keyhole.engines.transformers.keyhole_cache import KeyholeCache
from keyhole.engines.transformers.registration import detach

__all__ = [
    "Attachment",
    "KeyholeCache",
    "activated",
    "attach",
    "captured",
    "captured_generate",
    "detach",
    "footprint",
    "load_cache",
    "make_cache",
    "save_cache",
    "served_layers",
    "usage",
]
