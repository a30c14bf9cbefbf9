"""What tells a model from others, as files that are fitted to it name it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from transformers import PreTrainedModel

from keyhole.engines.transformers.identity import identity


def fingerprint(model: PreTrainedModel) -> str:
    """The identity of a model as one line: its parts by name, the long ones as digests.

    Raises:
        UnsupportedModelError: a weight cannot be read, with its name.
    """
    parts = identity(model)
    dtype = ", ".join(parts.pop("dtype"))
    return "; ".join([f"dtype {dtype}", *(f"{name} {_short(part)}" for name, part in parts.items())])


def _short(part: Any) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]
