"""`make demo-real`: SmolLM2 is asked about a real document, with all of its cache and with a tenth."""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

import keyhole
from keyhole.evaluation import Haystack
from keyhole.evaluation.facts import DEPTHS, FACTS, Fact
from keyhole.evaluation.fitting import bury
from keyhole.evaluation.texts import Text, text_named
from keyhole.generation import Answer, load_model

METHODS = ("dense", "pqcache(budget=0.1, dense_below=0)")
LABELS = ("dense", "pqcache")
MODEL = "SmolLM2-135M-Instruct"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", type=int, default=4096, help="of the document")
    options.add_argument("--text", default="opticks", help="name of a shipped text")
    given = options.parse_args()
    try:
        model, tokenizer = load_model("smollm2")
    except ValueError as error:
        sys.exit(f"skipped: {error}")
    began, text = time.monotonic(), text_named(given.text)
    facts = FACTS[: len(DEPTHS)]
    rng = np.random.default_rng(0)
    document = bury(
        rng,
        [fact.sentence for fact in facts],
        Haystack.from_text(text.text),
        tokenizer,
        given.tokens,
        head="",
        question="",
        depths=DEPTHS,
    ).strip()
    introduce(text, len(tokenizer(document).input_ids))
    answers = []
    for method in METHODS:
        print(f"reading it with {method} ...", file=sys.stderr, flush=True)
        beginnings = [fact.beginning for fact in facts]
        answers.append(
            keyhole.generate(
                model,
                tokenizer,
                context=document,
                questions=beginnings,
                method=method,
                chat=False,
                max_new_tokens=8,
                stop=[".", "\n"],
            )
        )
    compare(facts, answers)
    print(f"{time.monotonic() - began:.0f} s in all\n")


def introduce(text: Text, tokens: int) -> None:
    print(
        f"\n{MODEL} reads {tokens:,} tokens of a real document:\n\n"
        f"    {text.source}\n\n"
        f"{len(DEPTHS)} sentences that no model can know are hidden in it, at depths of "
        f"{DEPTHS[0]:.0%} to {DEPTHS[-1]:.0%}.\n"
        "The model is given the beginning of each and finishes it from what it has read,\n"
        "once looking at its whole cache for every new word (dense), once at a tenth of it (pqcache).\n"
    )


def compare(facts: tuple[Fact, ...], answers: list[list[Answer]]) -> None:
    width = max(len(fact.beginning) for fact in facts) + 2
    rows = [("", *LABELS)]
    for fact, found in zip(facts, zip(*answers, strict=True), strict=True):
        rows.append((f"{fact.beginning} ...", *(answer.text.strip() for answer in found)))
    rows.append(("", "", ""))
    rows.append(("right", *(_right(facts, found) for found in answers)))
    for label, value in (("cache read for each new word", _share), ("  in bytes", _bytes)):
        rows.append((label, *(value(found) for found in answers)))
    rows.append(("seconds to read the document", *(f"{found[0].prompt_seconds:.1f}" for found in answers)))
    for row in rows:
        print(f"{row[0]:{width + 2}}  {row[1]:18}  {row[2]}".rstrip())
    print()


def _right(facts: tuple[Fact, ...], found: list[Answer]) -> str:
    count = sum(fact.answer.lower() in answer.text.lower() for fact, answer in zip(facts, found, strict=True))
    return f"{count} of {len(facts)}"


def _share(found: list[Answer]) -> str:
    read, held = (sum(getattr(answer.usage, name) for answer in found) for name in ("read", "tokens"))
    return f"{read / held:.1%}"


def _bytes(found: list[Answer]) -> str:
    each = sum(answer.usage.bytes for answer in found) / sum(len(answer.tokens) for answer in found)
    return f"{each / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()
