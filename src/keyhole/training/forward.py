"""The training forward pass: Llama's own weights, with freely chosen positions.

transformers reads a jump in `position_ids` as the border of a packed sequence; position-skipping training
needs exactly such jumps inside one causal sequence.
"""

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM


def hidden_states(model: LlamaForCausalLM, tokens_BL: torch.Tensor, positions_BL: torch.Tensor):
    """Normed last hidden states [B, L, D] of a causal pass over `tokens_BL` at `positions_BL`."""
    core = model.model
    x = core.embed_tokens(tokens_BL)
    cos, sin = (t[:, None] for t in core.rotary_emb(x, positions_BL))
    for layer in core.layers:
        x = x + _attention(layer.self_attn, _norm(layer.input_layernorm, x), cos, sin)
        x = x + _feedforward(layer.mlp, _norm(layer.post_attention_layernorm, x))
    return _norm(core.norm, x)


def answer_logits(model: LlamaForCausalLM, tokens_BL, positions_BL, asked_BL) -> torch.Tensor:
    """Logits [N, V] that predict the tokens marked in `asked_BL` from the ones before them."""
    states = hidden_states(model, tokens_BL[:, :-1], positions_BL[:, :-1])
    return model.lm_head(states[asked_BL[:, 1:]])


def _norm(module, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), module.weight, module.variance_epsilon)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def _attention(module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    B, L, _ = x.shape
    q, k, v = (
        projection(x).view(B, L, -1, module.head_dim).transpose(1, 2)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    group = module.num_key_value_groups
    k = _rotate(k, cos, sin).repeat_interleave(group, dim=1)
    out = F.scaled_dot_product_attention(
        _rotate(q, cos, sin), k, v.repeat_interleave(group, dim=1), is_causal=True
    )
    return module.o_proj(out.transpose(1, 2).reshape(B, L, -1))


def _feedforward(module, x: torch.Tensor) -> torch.Tensor:
    return module.down_proj(F.silu(module.gate_proj(x)) * module.up_proj(x))
