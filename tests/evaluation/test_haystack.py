import pytest

from keyhole.evaluation.haystack import Haystack, prose


def test_environment_text_is_plain_prose():
    haystack = Haystack.from_environment()
    assert sum(map(len, haystack.sentences)) > 300_000
    assert len(set(haystack.sentences)) == len(haystack.sentences)
    assert all(s[0].isupper() and s[-1] in ".?!:" and "\n" not in s for s in haystack.sentences)


def test_parts_share_no_sentence_and_make_up_the_whole():
    parts = ("all", "train", "held-out")
    whole, train, held_out = (set(Haystack.from_environment(part).sentences) for part in parts)
    assert train | held_out == whole
    assert not train & held_out
    assert 0.1 < len(held_out) / len(whole) < 0.3


def test_unknown_part_is_refused():
    with pytest.raises(ValueError, match="'test'"):
        Haystack.from_environment("test")  # type: ignore[arg-type]


def test_prose_drops_code_and_headings():
    text = "Heading\n=======\n\nThis is a sentence of real prose. Then x = {1: 2}\n\n    def f(): pass\n"
    assert list(prose(text)) == ["This is a sentence of real prose."]


def test_prose_drops_addresses_that_are_no_words():
    text = "This sentence of some length has many ordinary words and leads to an address at https://example.org/{}."
    assert list(prose(text.format("a"))) == [text.format("a")]
    assert list(prose(text.format("somewhere/else"))) == []


def test_from_file_folds_white_space_and_splits_sentences(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("Call me Ishmael. Some years\nago,  never mind. The end")
    expected = ("Call me Ishmael.", "Some years ago, never mind.", "The end")
    assert Haystack.from_file(path).sentences == expected


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty"), (b" \n", "empty"), (b"a\0b", "binary"), (b"\xff\xfe\xfa", "UTF-8")]
)
def test_from_file_refuses_what_is_not_text(tmp_path, data, reason):
    path = tmp_path / "data.bin"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=reason) as error:
        Haystack.from_file(path)
    assert "data.bin" in str(error.value)


def test_from_file_names_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.txt.*No such file"):
        Haystack.from_file(tmp_path / "nowhere.txt")


def test_from_file_refuses_a_folder(tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        Haystack.from_file(tmp_path)


def test_no_sentences_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Haystack(())


def test_the_shipped_texts_are_a_haystack():
    haystack = Haystack.named("shipped")
    assert haystack is Haystack.shipped()
    assert haystack.sentences[0] == "PROP."
    assert sum(map(len, haystack.sentences)) > 500_000
    assert not any("\n" in sentence for sentence in haystack.sentences)


def test_a_haystack_by_name(tmp_path):
    assert Haystack.named("environment") == Haystack.from_environment()
    (tmp_path / "book").write_text("Call me Ishmael.")
    assert Haystack.named(tmp_path / "book").sentences == ("Call me Ishmael.",)
    with pytest.raises(ValueError, match="cannot read the haystack file 'shiped'"):
        Haystack.named("shiped")
