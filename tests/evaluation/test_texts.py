import hashlib
import json
from importlib.resources import files

import pytest

from keyhole.evaluation.texts import text_named, texts

# Rows of tables were measured on these bytes; whoever changes them makes the tables again.
DIGEST = "606752cded3ad637dacc087acadc8e9ebe3027c0540b8a94232c4a5055198ab5"


def test_the_bytes_are_those_that_tables_were_measured_on():
    joined = "\0".join(f"{text.name}\0{text.text}" for text in texts())
    assert hashlib.sha256(joined.encode("utf-8")).hexdigest() == DIGEST


def test_every_text_has_the_digest_and_the_origin_of_its_record():
    folder = files("keyhole.evaluation.texts")
    records = json.loads(folder.joinpath("sources.json").read_text(encoding="utf-8"))
    assert list(records) == [text.name for text in texts()]
    for name, record in records.items():
        data = folder.joinpath(f"{name}.txt").read_bytes()
        assert hashlib.sha256(data).hexdigest() == record["sha256"]
        assert record["package"]
        assert record["version"]
        assert record["path"]
        assert len(record["source_sha256"]) == 64
        assert record["end"] - record["start"] >= len(data.decode("utf-8")) - 1


def test_every_text_is_prose_of_its_own_under_a_licence_that_allows_shipping():
    assert len(texts()) >= 10
    assert len({text.kind for text in texts()}) == len(texts())
    assert len({text.text[:200] for text in texts()}) == len(texts())
    for text in texts():
        assert 40_000 < len(text.text) < 45_000  # more than 8,352 tokens of SmolLM2
        assert "public domain" in text.licence
        assert "Gutenberg" not in text.text
        assert not set(text.text) & set("\r\t\xa0\ufffd")


def test_a_text_by_its_name():
    assert text_named("opticks").source.startswith("Isaac Newton")
    with pytest.raises(ValueError, match=r"'optics'.*opticks"):
        text_named("optics")
