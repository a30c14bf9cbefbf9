"""The file of a record: it comes back, stays within its bound, and is refused where it is damaged."""

import json
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.view import RecordError, read_record, write_record
from keyhole.view.file import from_json, to_json
from tests.view.made import made

NUMBERS = ("prompt", "heads", "block", "sinks", "window")
SHAPES = st.fixed_dictionaries(
    {
        "tokens": st.sampled_from([12, 63, 400]),
        "steps": st.integers(1, 4),
        "layers": st.integers(1, 3),
        "heads": st.integers(1, 3),
        "share": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        "exact": st.booleans(),
        "block": st.sampled_from([1, 2, 8]),
        "seed": st.integers(0, 99),
    }
)


def equal(one, other):
    for field in fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name == "steps":
            assert len(mine) == len(theirs)
            for pair in zip(mine, theirs, strict=True):
                equal(*pair)
        elif isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, theirs)
        else:
            assert mine == theirs


@given(SHAPES)
@settings(max_examples=15)
def test_a_record_comes_back(shape):
    record = made(**shape)
    equal(record, from_json(to_json(record)))


@given(SHAPES)
@settings(max_examples=15)
def test_the_file_is_within_the_bound_of_its_reference(shape):
    """The bound of docs/reference/record.md, worked out anew."""
    record = made(**shape)
    tokens, steps, layers, heads = len(record.spans), len(record.steps), len(record.layers), record.heads
    blocks = -(-tokens // record.block)
    each = steps * layers * heads * (-(-blocks // 8) + 3 + 16) + steps * layers * 12
    each += steps * (-(-tokens // 8) + 3)
    written = len(json.dumps([record.text, record.method, record.question], ensure_ascii=False).encode())
    bound = 4 / 3 * (each + 10 * tokens) + written + 4000 * steps + 1000
    assert len(to_json(record)) <= bound


def test_a_file_that_would_be_too_large_is_made_coarser():
    record = made(tokens=2000, steps=6, share=0.3)
    whole = len(to_json(record))
    found = from_json(to_json(record, whole - 6000))
    assert found.block > 1
    assert len(to_json(found)) <= whole - 6000
    for step in range(6):
        np.testing.assert_array_equal(found.union(step), record.union(step))
        for layer in range(3):
            for head in range(2):
                exact = record.positions(step, layer, head)
                blocks = found.positions(step, layer, head)
                assert set(exact) <= set(blocks)
                assert set(blocks // found.block) == set(exact // found.block)
    with pytest.raises(ValueError, match="generate fewer tokens"):
        to_json(record, 500)


def test_files(tmp_path):
    record = made()
    write_record(record, tmp_path / "run.json")
    equal(record, read_record(tmp_path / "run.json"))
    with pytest.raises(RecordError, match=r"nowhere\.json"):
        read_record(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "no record of a run"),
        ({"version": 2}, "version 2"),
        ({"sets": "AAAA"}, "coded sets"),
        ({"sets": "not base64"}, "damaged"),
        ({"counts": "AAAA"}, "damaged"),
        ({"text": "short"}, "behind the text"),
        ({"text": 5}, "damaged"),
        ({"steps": []}, "damaged"),
        ({"starts": "gA=="}, "inside a number"),
        ({"counts": None}, "damaged"),
        ({"tiers": ["device"]}, "tiers"),
        ({"layers": ["<b>", 1, 2]}, "a layer"),
        ({"document": [5, 1]}, "begin of the document"),
        ({"sets": "////////////////"}, "damaged"),
        *[({name: value}, name) for name in NUMBERS for value in (-1, None, "5", True, 1.5, 10**30)],
        *[({"prompt": 5000}, "more tokens than the text"), ({"block": 1 << 63}, "block")],
    ],
)
def test_damage_is_refused(change, said):
    held = json.loads(to_json(made()))
    with pytest.raises(RecordError, match=said):
        from_json(json.dumps(held | change).encode())


STEPS = [
    *[{"token": -1}, {"token": 9999}, {"token": "0"}, {"first": None}, {"queries": 0}],
    *[{"best": [[-1, 0.5]]}, {"absent": [[1, "x"]]}],
]


@pytest.mark.parametrize("change", STEPS)
def test_damage_to_a_step_is_refused(change):
    held = json.loads(to_json(made()))
    held["steps"][1] |= change
    with pytest.raises(RecordError, match="damaged"):
        from_json(json.dumps(held).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 200_000])
def test_what_is_no_record_is_refused(data):
    with pytest.raises(RecordError, match="no record of a run"):
        from_json(data)
