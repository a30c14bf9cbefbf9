"""Localisation (retrieval) against aggregation tasks, which WindowKV (arXiv 2503.17922) treats differently.

The classifier of the paper was not released. Here prompts are classified by keywords of the instruction, or
by a classifier that the user provides.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from keyhole.core.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

LOCALISATION, AGGREGATION = "localisation", "aggregation"

_REACH = 600  # characters at each end of a prompt, where instructions are
_MOST = 512  # word pieces that a classifier is given

_MAKE = r"summar\w*|classif\w*|categor\w*|translat\w*|paraphras\w*|rewrite|rephrase|outline|overview|"
_MAKE += (
    r"report|review|essay|complete the|continue|next line|following code|how many|count|list all|in total"
)
_FIND = r"who|whom|whose|when|where|which|answer the question|question:|according to|find|locate|look up|"
_FIND += r"retrieve|extract|pass ?key|magic number|what (?:is|was|were|are|did|does)"
_AGGREGATES, _LOCATES = (re.compile(rf"\b(?:{words})", re.IGNORECASE) for words in (_MAKE, _FIND))


def task_of(text: str) -> str:
    """ "localisation" or "aggregation", by keywords at both ends of a prompt; the end has precedence.

    "localisation" where there are none.
    """
    for part in (text[-_REACH:], text[:_REACH]):
        makes, finds = (len(words.findall(part)) for words in (_AGGREGATES, _LOCATES))
        if makes != finds:
            return AGGREGATION if makes > finds else LOCALISATION
    return LOCALISATION


def classified(text: str, directory: str) -> str:
    """ "localisation" or "aggregation", by a Hugging Face sequence classifier of two labels.

    Labels that begin with "local" or "aggreg" are recognised; otherwise the first label is localisation, as
    in WindowKV. Long texts are cut to 512 word pieces, half from each end.

    Raises:
        SpecError: no such classifier, or not of two labels.
    """
    tokenizer, model = _loaded(directory)
    pieces = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    begin, end = ([piece] * (piece is not None) for piece in (tokenizer.cls_token_id, tokenizer.sep_token_id))
    most = min(getattr(model.config, "max_position_embeddings", None) or _MOST, _MOST)
    pieces = [*begin, *_both_ends(pieces, most - len(begin) - len(end)), *end]
    return _label(model, _logits(model, pieces)) if pieces else LOCALISATION


def _both_ends(pieces: list[int], most: int) -> list[int]:
    half = most // 2
    return pieces if len(pieces) <= most else pieces[:half] + pieces[half - most :]


def _logits(model: Any, pieces: list[int]) -> Tensor:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([pieces], device=model.device)).logits[0]


def _label(model: Any, logits: Tensor) -> str:
    best = int(logits.argmax())
    named = str(model.config.id2label.get(best, "")).lower()
    if named.startswith(("local", "aggreg")):
        return LOCALISATION if named.startswith("local") else AGGREGATION
    return (LOCALISATION, AGGREGATION)[best]


@lru_cache(maxsize=1)
def _loaded(directory: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise SpecError(
            f"cannot load the classifier {directory!r}: {reason}; give a directory that "
            "AutoModelForSequenceClassification can load, with its tokenizer"
        ) from error
    if model.config.num_labels != 2:
        raise SpecError(
            f"the classifier {directory!r} has {model.config.num_labels} labels; give one of two, "
            f"{LOCALISATION} and {AGGREGATION}"
        )
    return tokenizer, model
