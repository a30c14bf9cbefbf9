"""Tiny models with decided logits, exported to `tests/private/plain`: what both environments test with.

`python -m tests.private.tiny` in Keyhole's environment writes the folders anew.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

PLAIN = Path(__file__).parent / "plain"
NEW = 3
MPCACHE = (
    "mpcache(sinks=4, window=4, keep=0.7, budget=3, fine=2, coarse=4, kernel=3, dense_below=0, share=true, "
    "survivors=0.5)"
)
STATIC = "mpcache(sinks=2, window=4, keep=0.5, budget=1.0, fine=2, coarse=2, dense_below=0, per_head=true)"
CASES = {
    "llama-mpcache": ("llama", MPCACHE, 40),
    "gpt2-static": ("gpt2", STATIC, 16),
    "gpt2-streamingllm": ("gpt2", "streamingllm(budget=8, sinks=2, window=4)", 16),
}


def model_of(kind: str) -> PreTrainedModel:
    """Of one seed; weights are large enough that the best logit is well ahead."""
    torch.manual_seed(3)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=48,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            tie_word_embeddings=True,
            initializer_range=0.25,
        )
        return LlamaForCausalLM(config).eval()
    config = GPT2Config(
        vocab_size=48,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


def prompts(tokens: int) -> list[list[int]]:
    random = torch.Generator().manual_seed(2)
    return torch.randint(0, 48, (2, tokens), generator=random).tolist()


def write_all(folder: Path) -> None:
    from keyhole.private.plain.folder import settings_of, write

    for name, (kind, method, tokens) in CASES.items():
        write(folder / name, model_of(kind), method, settings_of(method), prompts(tokens), NEW)


if __name__ == "__main__":
    write_all(PLAIN)
