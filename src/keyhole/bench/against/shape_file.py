"""Random weights of a public model's shape as a GGUF file that every engine reads.

Blocks are drawn as they are stored, so that nothing has to be quantised. Norms are ones. The vocabulary is a
dummy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keyhole.bench.against.random_blocks import random_weights
from keyhole.bench.shapes import Shape
from keyhole.core.files import write_whole

FILE_TYPES = {
    "q4_0": "MOSTLY_Q4_0",
    "q4_1": "MOSTLY_Q4_1",
    "q8_0": "MOSTLY_Q8_0",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "f32": "ALL_F32",
}
_MERGED = "!!"
_VERSION = 1  # of what is written; another one is another file
_RANGE = 131_072 + 1024  # positions


class Matrix(NamedTuple):
    """A tensor of the file: `shape` is (rows, columns), or (size,) of what is not quantised."""

    name: str
    shape: tuple[int, ...]
    value: float | None = None  # of all its elements; None is random


def file_name(shape_name: str, shape: Shape, kind: str) -> str:
    """The name of the file, which says all that it depends on."""
    return f"{shape_name}-{shape.layers}-layers-{kind}-v{_VERSION}.gguf"


def write_shape(shape: Shape, kind: str, path: Path) -> None:
    """Write random weights; the same shape and kind give the same file.

    Raises:
        ValueError: an unknown kind, or a shape of another family.
        OSError: it cannot be written.
    """
    if kind not in FILE_TYPES:
        raise ValueError(f"weights of type {kind!r} are not written; give one of {', '.join(FILE_TYPES)}")
    if shape.family not in ("llama", "qwen2", "qwen3"):
        raise ValueError(f"shapes of {shape.family} are not written; give one of llama, qwen2 or qwen3")
    write_whole(path, lambda temporary: _write(shape, kind, temporary))


def matrices(shape: Shape) -> Iterator[Matrix]:
    """All tensors of a model, in the order of the file."""
    yield Matrix("token_embd.weight", (shape.vocabulary, shape.hidden))
    if not shape.tied:
        yield Matrix("output.weight", (shape.vocabulary, shape.hidden))
    yield Matrix("output_norm.weight", (shape.hidden,), 1.0)
    for layer in range(shape.layers):
        yield from (one._replace(name=f"blk.{layer}.{one.name}") for one in _layer(shape))


def _layer(shape: Shape) -> Iterator[Matrix]:
    heads, kv_heads = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield Matrix("attn_norm.weight", (shape.hidden,), 1.0)
    for name, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        yield Matrix(f"attn_{name}.weight", (rows, shape.hidden))
        if shape.family == "qwen2":
            yield Matrix(f"attn_{name}.bias", (rows,), 0.0)
    yield Matrix("attn_output.weight", (shape.hidden, heads))
    if shape.family == "qwen3":
        yield Matrix("attn_q_norm.weight", (shape.head_dim,), 1.0)
        yield Matrix("attn_k_norm.weight", (shape.head_dim,), 1.0)
    yield Matrix("ffn_norm.weight", (shape.hidden,), 1.0)
    yield Matrix("ffn_gate.weight", (shape.intermediate, shape.hidden))
    yield Matrix("ffn_up.weight", (shape.intermediate, shape.hidden))
    yield Matrix("ffn_down.weight", (shape.hidden, shape.intermediate))


def _write(shape: Shape, kind: str, path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, shape.family)
    _describe(writer, shape, getattr(gguf.LlamaFileType, FILE_TYPES[kind]))
    types = gguf.GGMLQuantizationType
    everything = list(matrices(shape))
    for one in everything:
        quantised = one.value is None
        raw = getattr(types, kind.upper()) if quantised else types.F32
        block, size = gguf.GGML_QUANT_SIZES[raw]
        count = int(np.prod(one.shape))
        writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), count // block * size, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(0)
    for one in everything:
        if one.value is None:
            data = random_weights(kind, int(np.prod(one.shape)), generator)
        else:
            data = np.full(one.shape, one.value, np.float32)
        writer.write_tensor_data(data)
    writer.close()


def _describe(writer: Any, shape: Shape, file_type: Any) -> None:
    writer.add_name(f"random weights, {shape.layers} layers of {shape.hidden}")
    writer.add_file_type(file_type)
    writer.add_context_length(_RANGE)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.query_heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(_vocabulary(shape.vocabulary))
    writer.add_token_types([1] * shape.vocabulary)
    writer.add_token_merges([" ".join(_MERGED)])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _vocabulary(size: int) -> list[str]:
    """The 256 bytes as byte pair encoding writes them, the one merge that there is, then names."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [chr(256 + number) for number in range(256 - len(plain))]
    named = (f"x{number}" for number in range(size - 257))
    return [*map(chr, plain), *shifted, _MERGED, *named][:size]
