"""Prompts, and what a model answers to them alone."""

import keyhole
from keyhole.serving.requests import Request

VERSE = "The sea is calm tonight. The tide is full, the moon lies fair upon the straits. "
PQ = "pqcache(dense_below=0)"


def text_of(words: str, verses: int) -> str:
    """A text that begins with `words`."""
    return f"{words} {VERSE * verses}".rstrip()


def ids_of(loaded, text):
    return tuple(loaded.tokenizer(text).input_ids)


def alone(loaded, text, method=PQ, **options):
    """The answer of `keyhole.generate`."""
    options = {"max_new_tokens": 6, "chat": False, "method": method} | options
    return keyhole.generate(loaded.model, loaded.tokenizer, context=text, questions="", **options)


def request(loaded, text, **options):
    return Request(ids_of(loaded, text), **{"max_tokens": 6} | options)
