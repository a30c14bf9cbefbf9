"""A record made from token ids alone, as a server has them."""

import keyhole
from keyhole.engines.transformers import attach
from keyhole.generation import load_model
from keyhole.generation.decoding import build_index, decode, prefill
from keyhole.view.file import from_json
from keyhole.view.served import ServedRecorder

METHOD = "oracle(budget=0.2, sinks=2, window=6)"
TEXT = "The sea is calm tonight \U0001f511. The tide is full, the moon lies fair upon the straits. " * 4


def test_a_record_of_token_ids():
    model, tokenizer = load_model(keyhole.default_model())
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    recorder = ServedRecorder(tokenizer)
    with attach(model, METHOD):
        cache = keyhole.KeyholeCache(model, METHOD)
        prefill(model, ids[:, :-1], cache)
        build_index(model, cache)
        recorder.begin(model, cache, tuple(ids[0].tolist()))
        tokens = []
        for token in decode(model, int(ids[0, -1]), cache, limit=3):
            tokens.append(token.id)
            recorder.step(token.id)
        record = from_json(recorder.end())
    assert record.text == tokenizer.decode(ids[0].tolist() + tokens)
    assert "".join(record.token_text(at) for at in range(len(record.spans))).count("calm") == 4
    assert [step.token for step in record.steps] == [len(ids[0]) + step for step in range(3)]
    assert 0 < len(record.positions(0, 0, 0)) < len(ids[0])
