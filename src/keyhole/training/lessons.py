"""Rows of the retrieval lessons: records hidden in real text, then many questions about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from keyhole.evaluation import phrases
from keyhole.evaluation.haystack import Haystack
from keyhole.evaluation.words import CODED_WORDS, NOUNS
from keyhole.training.batches import LABELS
from keyhole.training.forms import Form, Phrasebook, Reply, Wording, stand_in_keys, stand_in_values

FORM = LABELS.index("form")
QUESTION_SHARE, QUESTION_TOKENS = 0.42, 700  # of a row, at most
MOST_NEEDLES = 40
SEVERAL = 0.4  # share of the questions that ask for several keys


class Prose:
    """A haystack as one run of tokens. Layout: flat (N,), starts (N,) marks sentence beginnings."""

    def __init__(self, haystack: Haystack, book: Phrasebook) -> None:
        ids = [book.encode(f" {sentence}") for sentence in haystack.sentences]
        self.flat = np.concatenate(ids)
        self.starts = np.zeros(len(self.flat), dtype=bool)
        self.starts[np.cumsum([0, *(len(sentence) for sentence in ids[:-1])])] = True
        self.firsts = np.flatnonzero(self.starts)

    def run(self, rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
        """`length` tokens from a random sentence on, and the borders a record may stand at."""
        at = (int(rng.choice(self.firsts)) + np.arange(length)) % len(self.flat)
        return self.flat[at], np.append(np.flatnonzero(self.starts[at]), length)


@dataclass
class Row:
    """A sequence under construction: tokens, what is asked of each, and where positions may jump."""

    tokens: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    joints: list[int] = field(default_factory=list)

    def add(self, tokens: Sequence[int], asked: Sequence[int] | None = None) -> None:
        self.joints.append(len(self.tokens))
        self.tokens.extend(tokens)
        self.asked.extend(asked if asked is not None else [0] * len(tokens))


@dataclass(frozen=True)
class Question:
    tokens: list[int]
    asked: list[int]


def answered(reply: Reply, arguments: Sequence[int], label: str) -> Question:
    marks = (0, FORM, LABELS.index(label))
    return Question(reply.form.fill(arguments), [marks[a] for a in reply.asked])


def _flat(*groups: Sequence[tuple[int, ...]]) -> list[int]:
    return [token for group in groups for tokens in group for token in tokens]


class RecordLesson:
    """Short rows of bare records; the wording grows from stage to stage."""

    def __init__(self, book: Phrasebook, prose: Prose, wording: str) -> None:
        self.book, self.prose = book, prose
        record, question, answer = {
            "pair": (" {key} {value}", "\n {key}", " {value}"),
            "is": (" {key} is {value}.", "\n {key} is", " {value}."),
        }[wording]
        (key,), (value,) = stand_in_keys(1), stand_in_values(1)
        texts = [text.format(key=key, value=value) for text in (record, question, answer)]
        self.record: Form = book.form(texts[0], [key, value])
        self.question = book.reply(texts[1], texts[2], [key, value])

    def row(self, rng: np.random.Generator, length: int) -> Row:
        each = len(self.record.ids) + len(self.question.form.ids)
        count = int(rng.integers(2, (length - 4) // each + 1))
        pairs = list(zip(self.book.keys(rng, count), self.book.values(rng, count), strict=True))
        records = [self.record.fill(_flat(pair)) for pair in pairs]
        questions = [
            answered(self.question, _flat(pairs[i]), "multikey") for i in rng.permutation(count).tolist()
        ]
        return assemble(rng, self.book, self.prose, records, questions, length)


class TaskLesson:
    """Rows that hold the records of several tasks and ask about many of them."""

    def __init__(self, book: Phrasebook, prose: Prose) -> None:
        self.book, self.prose, self.wording = book, prose, Wording(book)

    def row(self, rng: np.random.Generator, length: int) -> Row:
        records, questions = self._contents(rng, length)
        budget = int(min(QUESTION_SHARE * length, QUESTION_TOKENS))
        chosen, used = [], 0
        for i in rng.permutation(len(questions)).tolist():
            if used + len(questions[i].tokens) <= budget:
                chosen.append(questions[i])
                used += len(questions[i].tokens)
        return assemble(rng, self.book, self.prose, records, chosen, length)

    def _contents(self, rng, length: int) -> tuple[list[list[int]], list[Question]]:
        needles = int(rng.integers(1, min(MOST_NEEDLES, length // 52) + 1))
        largest, sets = (5, 2) if length >= 512 else (4, 1)
        groups = rng.integers(2, largest + 1, rng.integers(0, sets + 1)).tolist()
        chains = rng.integers(2, largest + 1, rng.integers(0, sets + 1)).tolist()
        keys = self.book.keys(rng, needles + len(groups))
        names = self.book.names(rng, sum(chains))
        values = self.book.values(rng, needles + sum(groups) + len(chains))
        records, questions = self._needles(rng, keys[:needles], values[:needles])
        del keys[:needles], values[:needles]
        for size in groups:
            arguments = _flat(keys[:1], values[:size])
            records += [part.fill(arguments) for part in self.wording.numbered(size)]
            questions.append(answered(self.wording.ask_all(size), arguments, "multivalue"))
            del keys[:1], values[:size]
        for size in chains:
            records += self._chain(names[:size], values[0])
            arguments = _flat(names[:size], values[:1])
            questions.append(answered(self.wording.ask_chain(size), arguments, "variables"))
            del names[:size], values[:1]
        return [records[i] for i in rng.permutation(len(records))], questions

    def _needles(self, rng, keys, values) -> tuple[list[list[int]], list[Question]]:
        """Every key is asked for once, so that no question can be answered from an earlier reply."""
        records = [self.wording.needle.fill(_flat([k], [v])) for k, v in zip(keys, values, strict=True)]
        left, questions = rng.permutation(len(keys)).tolist(), []
        while left:
            size = min(len(left), int(rng.integers(2, 6)) if rng.random() < SEVERAL else 1)
            some, left = left[:size], left[size:]
            arguments = _flat([keys[i] for i in some], [values[i] for i in some])
            if size == 1:
                questions.append(answered(self.wording.ask_one, arguments, "multikey"))
            else:
                questions.append(answered(self.wording.ask_several(size), arguments, "multiquery"))
        return records, questions

    def _chain(self, names, start) -> list[list[int]]:
        first = self.wording.assign.fill(_flat([names[0]], [start]))
        return [first, *(self.wording.hop.fill(_flat(hop)) for hop in pairwise(names))]


class ListLesson:
    """Rows of the two counting tasks, answered in any order."""

    def __init__(self, book: Phrasebook) -> None:
        self.book = book
        self.lists = {
            "common_words": self._list(
                phrases.draw_common, NOUNS, phrases.COMMON, phrases.LIST_HEAD, phrases.COMMON_QUESTION
            ),
            "frequent_words": self._list(
                phrases.draw_frequent,
                CODED_WORDS,
                phrases.FREQUENT,
                phrases.CODED_HEAD,
                phrases.FREQUENT_QUESTION,
            ),
        }

    def _list(self, draw, words, answers: int, head: str, question: str):
        before = [self.book.tokenizer.bos_token_id, *self.book.encode(head)]
        stand_ins = list(words[:answers])
        reply = self.book.reply(question, phrases.reply_list(stand_ins), stand_ins)
        return draw, self.book.words(words), before, reply

    def row(self, rng: np.random.Generator, length: int) -> Row:
        label = "common_words" if rng.random() < 0.5 else "frequent_words"
        draw, ids, before, reply = self.lists[label]
        listed, asked = draw(rng, length - len(before) - len(reply.form.ids), len(ids))
        row = Row()
        row.add(before)
        for part in np.array_split(ids[listed], 8):
            row.add(part.tolist())
        question = answered(reply, ids[rng.permutation(asked)].tolist(), label)
        row.add(question.tokens, question.asked)
        return row


def assemble(
    rng: np.random.Generator,
    book: Phrasebook,
    prose: Prose,
    records: list[list[int]],
    questions: list[Question],
    length: int,
) -> Row:
    """Prose with the records between its sentences, then the questions: `length` tokens in all."""
    head = [book.tokenizer.bos_token_id, *book.encode(phrases.TEXT_HEAD)]
    spare = length - len(head) - sum(map(len, records)) - sum(len(q.tokens) for q in questions)
    if spare < 0:
        raise ValueError(f"records and questions are {-spare} tokens too long for a row of {length}")
    text, borders = prose.run(rng, spare)
    cuts = np.sort(rng.choice(borders, size=len(records)))
    row, last = Row(), 0
    row.add(head)
    for record, cut in zip(records, cuts.tolist(), strict=True):
        row.add(text[last:cut].tolist())
        row.add(record)
        last = cut
    row.add(text[last:].tolist())
    for question in questions:
        row.add(question.tokens, question.asked)
    return row


def build_lessons(tokenizer: PreTrainedTokenizerBase, haystack: Haystack) -> dict:
    """Lesson name -> object with `row(rng, length)`."""
    book = Phrasebook(tokenizer)
    prose = Prose(haystack, book)
    return {
        "pair": RecordLesson(book, prose, "pair"),
        "is": RecordLesson(book, prose, "is"),
        "tasks": TaskLesson(book, prose),
        "lists": ListLesson(book),
    }
