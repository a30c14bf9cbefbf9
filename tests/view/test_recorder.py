"""A record has what each step read, for every method, and recording changes no token."""

import numpy as np
import pytest

import keyhole
from keyhole.engines.transformers import served_layers
from keyhole.generation import load_model
from keyhole.methods import METHODS
from keyhole.view import Recorder
from tests.small import WRAPPERS, small

FILLER = "The sea is calm tonight. The tide is full, the moon lies fair upon the straits. "
DOCUMENT = FILLER * 4 + "The secret code of amber falcon is 481. " + FILLER * 3
QUESTION = "The secret code of amber falcon is"
SELECTING = "oracle(budget=0.2, sinks=2, window=6)"


@pytest.fixture(scope="module")
def loaded():
    return load_model(keyhole.default_model())


class Watched(Recorder):
    """Beside recording, notes by other means what each layer read for each token: positions by KV head."""

    def begin(self, cache, *others):
        super().begin(cache, *others)
        self.expected, self._now, self._layers = [], {}, served_layers(cache)
        for layer in self._layers:
            layer.observe(lambda seen, layer=layer: self._note(layer, seen.read))
            self._wrap(layer)

    def _wrap(self, layer):
        attend = layer._attend_all

        def attend_all(*given):
            self._now[layer.place] = [[at for at in head if at >= 0] for head in kept(layer)]
            return attend(*given)

        layer._attend_all = attend_all

    def _note(self, layer, read):
        always = read.regions.always[0, : read.regions.always_counts[0]].tolist()
        held = kept(layer)
        slots = zip(read.selection.slots[0].tolist(), read.selection.counts[0].tolist(), strict=True)
        self._now[layer.place] = [
            sorted(row[slot] for slot in always + chosen[:count])
            for row, (chosen, count) in zip(held, slots, strict=True)
        ]

    def generated(self, token):
        super().generated(token)
        self.expected.append([self._now[layer.place] for layer in self._layers])

    def end(self):
        for layer in self._layers:
            del layer._attend_all
        super().end()


def kept(layer):
    if hasattr(layer, "kept"):
        return layer.kept.positions[0].tolist()
    return [list(range(layer.length))] * layer.newest.shape[1]


def specs():
    for name in METHODS:
        if name in WRAPPERS:
            yield f"{name} + {small('snapkv', 0.3)}"
        elif name in ("sale", "chess", "quantised", "tail"):
            yield f"{name} + {small('oracle', 0.1)}"
        else:
            yield str(small(name, None if name == "dense" else 0.1))
    yield f"{small('snapkv', 0.5)} + {small('oracle', 0.1)}"


def ask(loaded, method, recorder=None, **options):
    options = {"max_new_tokens": 3, "chunk": 64, "question_aware": True} | options
    return keyhole.generate(
        *loaded, context=DOCUMENT, questions=QUESTION, method=method, recorder=recorder, **options
    )


@pytest.mark.parametrize("method", list(specs()))
def test_a_record_has_what_was_read(loaded, method):
    watched = Watched(exact=True)
    answer = ask(loaded, method, watched)
    assert answer.tokens == ask(loaded, method).tokens
    [record] = watched.records
    assert len(record.steps) == len(answer.tokens) == len(watched.expected)
    for number, expected in enumerate(watched.expected):
        for layer, heads in enumerate(expected):
            for head, positions in enumerate(heads):
                assert record.positions(number, layer, head).tolist() == positions
                assert record.steps[number].counts[layer, head] == len(positions)
        union = sorted({position for heads in expected for head in heads for position in head})
        assert record.union(number).tolist() == union
        assert record.steps[number].token == record.prompt + number


def test_numbers_are_those_of_the_usage(loaded):
    recorder = Recorder()
    answer = ask(loaded, SELECTING, recorder)
    steps = recorder.records[0].steps
    assert sum(step.nbytes.sum() for step in steps) == pytest.approx(answer.usage.bytes)
    assert sum(step.counts.mean(1).sum() for step in steps) == pytest.approx(answer.usage.read)
    assert sum((1 - step.missed).mean(1).sum() for step in steps) == pytest.approx(answer.usage.mass)
    assert all(step.exact is None and step.best == () for step in steps)


def test_attention_adds_up(loaded):
    recorder = Recorder(exact=True)
    ask(loaded, "oracle(budget=24, sinks=2, window=6)", recorder)
    for step in recorder.records[0].steps:
        missed = float(step.exact.mean())
        assert sum(share for _, share in step.absent) <= missed + 1e-6
        assert sum(share for _, share in step.best) <= 1 - missed + 1e-6
        assert sum(share for _, share in step.best) > 0.5
        np.testing.assert_allclose(step.exact, step.missed, atol=1e-4)


def test_the_text_is_the_prompt_and_the_answer(loaded):
    recorder = Recorder()
    answer = ask(loaded, SELECTING, recorder)
    [record] = recorder.records
    assert record.prompt == answer.prompt_tokens
    assert record.text.startswith(DOCUMENT.rstrip())
    assert record.text[slice(*record.document)] == DOCUMENT.rstrip()
    spelled = "".join(record.token_text(at) for at in range(len(record.spans)))
    assert spelled == record.text
    assert record.token_text(record.prompt) == loaded.tokenizer.decode(answer.tokens[:1])
    assert (record.sinks, record.window, record.question) == (2, 6, QUESTION)


def test_each_question_has_a_record(loaded):
    recorder = Recorder()
    questions = [QUESTION, "The tide is"]
    keyhole.generate(
        *loaded, context=DOCUMENT, questions=questions, method=SELECTING, max_new_tokens=2, recorder=recorder
    )
    assert [record.question for record in recorder.records] == questions


def test_long_prompts_are_recorded_in_blocks(loaded):
    fine, coarse = Recorder(), Recorder(limit=100)
    for recorder in (fine, coarse):
        ask(loaded, SELECTING, recorder)
    [one], [other] = fine.records, coarse.records
    assert one.block == 1
    assert other.block > 1
    assert -(-other.prompt // other.block) <= 100 < -(-other.prompt // (other.block // 2))
    for step in range(len(one.steps)):
        np.testing.assert_array_equal(one.union(step), other.union(step))
        exact = one.positions(step, 1, 0)
        assert set(other.positions(step, 1, 0) // other.block) == set(exact // other.block)
    with pytest.raises(ValueError, match="at least 1"):
        Recorder(limit=0)


def test_nobody_listens_after_an_interruption(loaded):
    recorder = Recorder()

    def interrupt(_text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(loaded, SELECTING, recorder, stream=interrupt)
    assert recorder.records[0].steps
    assert recorder._request is None


def test_a_document_that_is_stored(loaded, tmp_path):
    library = keyhole.Library(tmp_path / "store", quota=1 << 28)
    library.add(text=DOCUMENT, name="sea", model=loaded.model, tokenizer=loaded.tokenizer, method=SELECTING)
    recorder = Recorder()
    answer = library.ask("sea", QUESTION, max_new_tokens=3, recorder=recorder)
    [record] = recorder.records
    assert answer.tokens == library.ask("sea", QUESTION, max_new_tokens=3).tokens
    assert set(record.tiers) == {"disk"}
    assert record.text[slice(*record.document)] == DOCUMENT.rstrip()
    # One call reads the question to its end, by one selection, and gives the first token.
    assert record.steps[0].queries > 1
    assert [step.token for step in record.steps] == list(range(record.prompt, record.prompt + 3))
    together = record.positions(0, 1, 0)
    assert 0 < len(together) < record.steps[0].length
