"""Hugging Face transformers, by its public registries."""

from keyhole.engines.transformers.attach import Attachment, attach, make_cache
from keyhole.engines.transformers.cache import activated, footprint, served_layers, usage
from keyhole.engines.transformers.captured import captured, captured_generate
from keyhole.engines.transformers.persist import load_cache, save_cache
from keyhole.engines.transformers.registration import detach

__all__ = [
    "Attachment",
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
