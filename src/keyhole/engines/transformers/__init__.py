"""Hugging Face transformers, by its public registries."""

from keyhole.engines.transformers.attach import Attachment, attach
from keyhole.engines.transformers.cache import footprint, make_cache, served_layers, usage
from keyhole.engines.transformers.registration import detach

__all__ = ["Attachment", "attach", "detach", "footprint", "make_cache", "served_layers", "usage"]
