"""A tiny GGUF file of the Llama architecture, over bytes."""

from pathlib import Path

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

HIDDEN, HEADS, FEED_FORWARD = 32, 2, 64
TOKENS = [*bytes_to_unicode().values(), "ab", "<|end|>"]


def write_gguf(path: Path, seed: int = 0, kinds: dict[str, gguf.GGMLQuantizationType] | None = None) -> Path:
    """Matrices are of the kind whose key is the last one that is part of their name; by default float32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 1) + [3])
    writer.add_token_merges(["a b"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(len(TOKENS) - 1)
    rng = np.random.default_rng(seed)
    for name, shape in _shapes().items():
        numbers = 0.1 * rng.standard_normal(shape).astype(np.float32)
        kind = [kind for key, kind in (kinds or {}).items() if key in name and len(shape) == 2][-1:]
        data = gguf.quantize(numbers, kind[0]) if kind else numbers
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind[0] if kind else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes() -> dict[str, tuple[int, ...]]:
    narrow = (HIDDEN // HEADS, HIDDEN)
    layer = {
        "attn_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": narrow,
        "attn_v": narrow,
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (FEED_FORWARD, HIDDEN),
        "ffn_up": (FEED_FORWARD, HIDDEN),
        "ffn_down": (HIDDEN, FEED_FORWARD),
    }
    around = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,)}
    return around | {f"blk.0.{name}": shape for name, shape in layer.items()}
