"""Models whose linear and embedding modules hold packed weights."""

from keyhole.engines.transformers.packed.modules import (
    PackedEmbedding,
    PackedLinear,
    is_packed,
    plain_packing,
)
from keyhole.engines.transformers.packed.replace import ENDS, FORMS, pack_model, replace_modules
from keyhole.engines.transformers.packed.report import Summary, summary

__all__ = [
    "ENDS",
    "FORMS",
    "PackedEmbedding",
    "PackedLinear",
    "Summary",
    "is_packed",
    "pack_model",
    "plain_packing",
    "replace_modules",
    "summary",
]
