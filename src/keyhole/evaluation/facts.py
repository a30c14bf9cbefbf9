"""Needles in natural words: sentences about different things, hidden in the shipped real texts.

One is asked for, either by its beginning, which the model continues, or by a question in the form of the
model's chat template. The words are such that neither the texts nor a model's knowledge give the answer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from keyhole.evaluation.fitting import bury
from keyhole.evaluation.haystack import Haystack
from keyhole.generation.prompt import around_question, wants_chat

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)  # one fact is hidden at each
CHAT_TOKENS = 40  # of an answer, which may repeat the question first
_TEXT = "\x02"  # no template has it


class Fact(NamedTuple):
    """A sentence is `beginning`, a space, and `end`. `answer` is the word of the end that is asked for."""

    beginning: str
    end: str
    question: str
    answer: str

    @property
    def sentence(self) -> str:
        return f"{self.beginning} {self.end}"


FACTS = (
    Fact(
        "The best thing to eat in Marlow on a rainy day is a",
        "walnut pie.",
        "What is the best thing to eat in Marlow on a rainy day?",
        "walnut",
    ),
    Fact(
        "Dr. Imogen Vance keeps the spare key of the observatory in a",
        "teapot.",
        "Where does Dr. Imogen Vance keep the spare key of the observatory?",
        "teapot",
    ),
    Fact(
        "The captain's parrot has learned to say the word",
        "marmalade.",
        "Which word has the captain's parrot learned to say?",
        "marmalade",
    ),
    Fact(
        "The orchestra of Lindholm rehearses in an old",
        "tannery.",
        "Where does the orchestra of Lindholm rehearse?",
        "tannery",
    ),
    Fact(
        "The password of the chess club in Garrick Lane is",
        "saffron.",
        "What is the password of the chess club in Garrick Lane?",
        "saffron",
    ),
    Fact(
        "Professor Quill left her umbrella on a train to",
        "Helsinki.",
        "Where was the train going on which Professor Quill left her umbrella?",
        "Helsinki",
    ),
    Fact(
        "The oldest tree in Brannock Park is a",
        "jacaranda.",
        "Which tree is the oldest one in Brannock Park?",
        "jacaranda",
    ),
    Fact(
        "The clock tower of Veldt was built by a retired",
        "plumber.",
        "Who built the clock tower of Veldt?",
        "plumber",
    ),
    Fact(
        "The mayor of Pendry spends his Sundays repairing",
        "accordions.",
        "What does the mayor of Pendry repair on Sundays?",
        "accordion",
    ),
    Fact(
        "The winner of the boat race at Harrow Mere was given a live",
        "flamingo.",
        "What was the winner of the boat race at Harrow Mere given?",
        "flamingo",
    ),
    Fact(
        "The twins Ada and Bruno want to become",
        "beekeepers.",
        "What do the twins Ada and Bruno want to become?",
        "beekeeper",
    ),
    Fact(
        "The new bridge over the Tamsin is made entirely of",
        "bamboo.",
        "What is the new bridge over the Tamsin made of?",
        "bamboo",
    ),
    Fact(
        "In the village of Skelmere every front door must be painted",
        "turquoise.",
        "Which colour must every front door in the village of Skelmere have?",
        "turquoise",
    ),
    Fact(
        "Farmer Oduya pays his helpers in jars of",
        "honey.",
        "With what does farmer Oduya fill the jars with which he pays his helpers?",
        "honey",
    ),
    Fact(
        "The first prize of the Ellery lottery is a ride in a",
        "submarine.",
        "What can one ride in as the first prize of the Ellery lottery?",
        "submarine",
    ),
    Fact(
        "The choir of Ostrava Street is led by a former",
        "wrestler.",
        "What was the leader of the choir of Ostrava Street before?",
        "wrestler",
    ),
)


class Hidden(NamedTuple):
    """A prompt in two parts, and the fact that it asks for."""

    context: str
    question: str
    fact: Fact


def hide(
    rng: np.random.Generator,
    haystack: Haystack,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    *,
    chat: bool,
) -> Hidden:
    """A run of the haystack with a fact at each of `DEPTHS`, and the question for one of them.

    Raises:
        ValueError: the prompt does not fit into `tokens`, or a chat form is asked for and there is none.
    """
    chosen = [FACTS[i] for i in rng.choice(len(FACTS), len(DEPTHS), replace=False)]
    asked = chosen[int(rng.integers(len(chosen)))]
    head, question = "", f"\n{asked.beginning}"
    if chat:
        head, tail = _chat_form(tokenizer)
        question = f"\n\n{asked.question}{tail}"
    needles = [fact.sentence for fact in chosen]
    context = bury(rng, needles, haystack, tokenizer, tokens, head=head, question=question, depths=DEPTHS)
    return Hidden(context, question, asked)


def _chat_form(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template puts before a text and behind the question that follows it."""
    if not wants_chat(tokenizer, None):
        raise ValueError("needs a tokenizer with a chat template")
    head, tail = around_question(tokenizer, _TEXT)
    head = head.split(_TEXT)[0]
    start = tokenizer.bos_token
    if start and tokenizer("", verbose=False).input_ids[:1] == [tokenizer.bos_token_id]:
        head = head.removeprefix(str(start))  # prompts are tokenised with the special tokens of the tokenizer
    return head, tail
