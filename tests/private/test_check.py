"""Many prompts against plaintext decoding: what counts as the same, and results that are continued."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("spu", reason="the package spu is not installed; `make test-private` has it")
from keyhole.private import files
from keyhole.private.files import Case
from keyhole.private.runtime.check import Checked, answer_all, judged
from keyhole.private.runtime.links import PartyError

PLAIN = Path(__file__).parent / "plain" / "gpt2-static"


def test_only_the_first_difference_counts_and_only_ties_are_excused() -> None:
    case = Case(np.arange(4), np.array([5, 6, 7]), np.array([1.0, 0.01, 2.0], np.float32))
    made = judged([([5, 6, 7], case), ([5, 9, 9], case), ([5, 6, 9], case)])
    assert made == Checked(1, 1, 1, 9, pytest.approx(0.01))


def test_results_are_continued_and_belong_to_a_folder(tmp_path: Path) -> None:
    results, counts = tmp_path / "results.jsonl", []
    run = files.read_run(PLAIN)
    cases = files.read_cases(PLAIN, run)
    mark = {"protocol": "ABY3", **run.sha256, "settings": run.settings.as_json()}
    lines = [
        mark,
        *({"prompt": place, "tokens": case.expected.tolist()} for place, case in enumerate(cases[1:], 1)),
    ]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = answer_all(PLAIN, results, "aby3", 600, lambda done, count: counts.append((done, count)))
    assert counts == [(len(cases), len(cases))]
    assert (made.same, made.near, made.wrong) == (len(cases), 0, 0)
    assert len(results.read_text().splitlines()) == 1 + len(cases)
    with pytest.raises(PartyError, match="another folder or protocol"):
        answer_all(PLAIN, results, "cheetah", 600, lambda *_: None)
