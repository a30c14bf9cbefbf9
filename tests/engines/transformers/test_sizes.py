"""The sizes of attention layers, as configurations give them."""

from transformers import LlamaConfig, MambaConfig

from keyhole.engines.transformers.sizes import attention_sizes


def test_sizes():
    config = LlamaConfig(hidden_size=96, num_attention_heads=6, num_key_value_heads=2)
    assert attention_sizes(config) == (6, 2, 16)
    config = LlamaConfig(hidden_size=96, num_attention_heads=6, num_key_value_heads=2, head_dim=24)
    assert attention_sizes(config) == (6, 2, 24)
    assert attention_sizes(LlamaConfig(hidden_size=96, num_attention_heads=6)) == (6, 6, 16)


def test_no_heads():
    assert attention_sizes(MambaConfig()) is None
