import json
from dataclasses import replace

import numpy as np
import pytest

from keyhole.evaluation.divergence.intervals import interval
from keyhole.evaluation.divergence.records import merge, read_rows, write_records
from keyhole.evaluation.divergence.rows import DivergenceRow, Settings, TextScore

SETTINGS = Settings("tiny", "abc", "float32", 4096, 2, ("a", "b"), ("1", "2"), "0.1.0")
ONE = TextScore("a", (0.1, 0.3), 1, 2.0, 1.5, 0.2, 100.0, 50.0, 10.0, 0.0, 1.0, 0.9)
TWO = replace(ONE, name="b", kl=(0.0, 0.2), agreed=2, loss=1.0, loss_dense=1.0, read=300.0)
ROW = DivergenceRow(SETTINGS, "quest", "0.1", None, (ONE, TWO))


def test_the_label_names_the_dtype_once():
    assert SETTINGS.label == "tiny, float32"
    assert replace(SETTINGS, model="smollm2/float32").label == "smollm2/float32"


def test_the_summary():
    found = ROW.summary
    assert found.kl_mean == pytest.approx(0.15)
    assert found.kl_median == pytest.approx(0.15)
    assert found.kl_worst == 0.3
    assert found.top1 == 0.75
    assert found.perplexity == pytest.approx(np.exp(1.5))
    assert found.perplexity_ratio == pytest.approx(np.exp(0.25))
    assert found.kv_bytes_read_per_token == 200
    assert (found.mass_estimated, found.mass_exact) == (0.9, None)
    assert found.kl_mean_interval == pytest.approx((0.1, 0.2))


def test_one_text_has_no_interval():
    assert replace(ROW, by_text=(ONE,)).summary.kl_mean_interval is None


def test_intervals_repeat_and_hold_what_they_should():
    """Means of 40 normal numbers, 200 times: about 95% of the intervals hold the true mean."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(200, 40, 1))
    found = [interval(each, lambda drawn: drawn.mean(-1)) for each in values]
    assert found == [interval(each, lambda drawn: drawn.mean(-1)) for each in values]
    share = np.mean([low <= 0 <= high for low, high in found])
    assert 0.88 <= share <= 0.99


def test_texts_are_drawn_whole():
    """Tokens of one text are alike, so more of them make an interval no narrower."""
    texts = np.random.default_rng(2).normal(size=(8, 1))
    few, many = (interval(np.repeat(texts, n, axis=1), lambda drawn: drawn.mean(-1)) for n in (1, 100))
    assert many == pytest.approx(few)


def test_a_file_read_again_gives_the_rows(tmp_path):
    path = tmp_path / "rows.json"
    write_records(path, [{"task": "single", "method": "dense"}, ROW.record()])
    assert read_rows(path) == [ROW]
    assert len(path.read_text().splitlines()) == 4
    record = json.loads(path.read_text())[1]
    assert record["kl_mean"] == pytest.approx(0.15)
    assert record["texts"] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not JSON"), ("{}", "no rows"), ("[1]", "no rows"), ('[{"task": "kl"}]', "damaged")],
)
def test_files_that_hold_no_rows(tmp_path, text, said):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_rows(path)
    with pytest.raises(ValueError, match="cannot read"):
        read_rows(tmp_path / "none.json")


def test_merging_keeps_settings_apart_and_rows_once():
    longer = replace(ROW, settings=replace(SETTINGS, context=8192))
    other = replace(ROW, method="pqcache")
    renamed = replace(ROW, settings=replace(SETTINGS, model="elsewhere"))
    assert merge([[ROW, longer], [renamed, other]]) == [ROW, other, longer]


def test_merging_takes_the_fuller_row():
    part = replace(ROW, by_text=(ONE,))
    assert merge([[part], [ROW]]) == [ROW]
    assert merge([[ROW], [part]]) == [ROW]


def test_merging_refuses_what_differs():
    near = replace(ROW, by_text=(replace(ONE, kl=(0.1, 0.3001)), TWO))
    assert merge([[ROW], [near]]) == [ROW]
    far = replace(ROW, by_text=(replace(ONE, kl=(0.1, 0.5)), TWO))
    with pytest.raises(ValueError, match=r"quest 0\.1 is there twice"):
        merge([[ROW], [far]])
