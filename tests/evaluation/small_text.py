"""A tokenizer of single bytes and a little text, so that tiny models can be asked the tasks."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from keyhole.evaluation import Haystack
from tests.tiny import fresh_model, tiny_model

END = "<|end|>"
TEXT = Haystack.from_text(
    "The sea is calm tonight. The tide is full. The moon lies fair upon the straits. " * 20
)


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {symbol: i for i, symbol in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), END])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def byte_model(family: str = "llama", **changes) -> PreTrainedModel:
    """A tiny random model over bytes, shared between tests."""
    return tiny_model(family, vocab_size=len(byte_tokenizer()), **changes)


def own_byte_model(**changes) -> PreTrainedModel:
    """As `byte_model`, for a test that changes it."""
    return fresh_model("llama", vocab_size=len(byte_tokenizer()), **changes)
