"""A small byte-pair tokenizer in which every word of the tasks is one token."""

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from keyhole.evaluation.words import CODED_WORDS, WORDS

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
_PIECE = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDING = (
    "The secret code codes of is are All List value Follow Below Text goes to In list text coded words word "
    "three five most common frequent the and"
)


def build_tokenizer(texts: Iterable[str], vocabulary: int = 4096) -> PreTrainedTokenizerFast:
    """Learn merges from `texts`, then add every task word and three-digit number as whole tokens."""
    whole = dict.fromkeys(f" {word}" for word in (*WORDS, *CODED_WORDS, *_WORDING.split(), *range(100, 1000)))
    space = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(" ")[0][0]
    forced = [word.replace(" ", space) for word in whole]
    learned = _learn(texts, vocabulary - len(forced))
    state = learned.get_vocab()
    merges = _merges(learned)
    kept = [token for token, _ in sorted(state.items(), key=lambda item: item[1])]
    tokens = list(dict.fromkeys([*kept, *forced]))
    bpe = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=True)
    return _wrap(_plumb(Tokenizer(bpe)))


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a token that is there, such as BEGIN."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def _learn(texts: Iterable[str], size: int) -> Tokenizer:
    tokenizer = _plumb(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _plumb(tokenizer: Tokenizer) -> Tokenizer:
    split = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([BEGIN, END, PAD])
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=16384,
        clean_up_tokenization_spaces=False,
    )
