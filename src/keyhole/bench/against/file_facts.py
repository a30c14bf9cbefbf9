"""What a GGUF file says of its model, read without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

# Bytes of an element of keys and values.
_BYTES = {"f32": 4, "float32": 4, "q8_0": 34 / 32, "q4_0": 18 / 32}


class FileFacts(NamedTuple):
    """The range of a model in tokens, and the elements that a token's keys and values have in all layers."""

    positions: int
    token_elements: int

    def cache_bytes(self, tokens: int, kind: str) -> float:
        """What a cache of so many tokens takes, in a type of torch or ggml; those not named have 16 bits."""
        return tokens * self.token_elements * _BYTES.get(kind, 2)


def file_facts(path: Path) -> FileFacts:
    """Facts from the header.

    Raises:
        ValueError: it does not state them, or is no GGUF file.
    """
    import gguf

    try:
        fields = gguf.GGUFReader(path).fields
        name = fields["general.architecture"].contents()
        values = {key.removeprefix(f"{name}."): field for key, field in fields.items()}

        def number(key: str, default: int | None = None) -> int:
            return default if default is not None and key not in values else _largest(values[key].contents())

        heads = number("attention.head_count")
        size = number("attention.key_length", number("embedding_length") // heads)
        kv_heads, layers = number("attention.head_count_kv", heads), number("block_count")
        return FileFacts(number("context_length"), 2 * layers * kv_heads * size)
    except (KeyError, ValueError, OSError, IndexError) as error:
        raise ValueError(f"the file {str(path)!r} does not describe a model: {error}") from error


def _largest(value: Any) -> int:
    """A number, or the largest of those that layers have."""
    return int(max(value)) if isinstance(value, list) else int(value)
