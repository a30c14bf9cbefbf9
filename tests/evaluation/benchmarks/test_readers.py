"""Readers on small files of each benchmark's form."""

import json

import pytest

from keyhole.evaluation.benchmarks.babilong import BabiLong
from keyhole.evaluation.benchmarks.base import Options
from keyhole.evaluation.benchmarks.infinitebench import InfiniteBench
from keyhole.evaluation.benchmarks.longbench import LongBench
from keyhole.evaluation.benchmarks.longbench2 import LongBench2
from keyhole.evaluation.benchmarks.needlebench import NeedleBench
from keyhole.evaluation.benchmarks.niah import Needle
from keyhole.evaluation.benchmarks.registry import BENCHMARKS
from keyhole.evaluation.benchmarks.ruler import Ruler
from keyhole.evaluation.benchmarks.scbench import ScBench
from keyhole.evaluation.fitting import count_tokens
from tests.evaluation.benchmarks import small_files
from tests.evaluation.benchmarks.small_files import CONTEXT, longbench_record, write_lines
from tests.evaluation.small_text import byte_tokenizer


def test_ruler(tmp_path):
    small_files.ruler(tmp_path)
    read = Ruler(tmp_path, Options())
    assert read.tasks() == ["qa_1", "vt"]
    plain, prefixed = read.samples("vt")
    assert (plain.prompt, plain.reply, plain.turns[0].limit) == (CONTEXT + "What is it?", "", 30)
    assert (prefixed.id, prefixed.reply, prefixed.chat, prefixed.cut) == ("1", " It is", False, False)
    assert read.score("vt", ["1", "2"], "2") == 0.5
    assert read.score("qa_1", ["sea", "tide"], "TIDE") == 1  # any of them
    assert not read.notes


def test_tasks_of_several_lengths_are_told_apart_by_their_folders(tmp_path):
    small_files.ruler(tmp_path / "4096/data")
    small_files.ruler(tmp_path / "8192/data")
    tasks = Ruler(tmp_path, Options()).tasks()
    assert tasks == ["4096/qa_1", "4096/vt", "8192/qa_1", "8192/vt"]


def test_longbench(tmp_path):
    small_files.longbench(tmp_path)
    read = LongBench(tmp_path, Options())
    assert read.tasks() == ["hotpotqa", "trec_e"]
    first, second = read.samples("hotpotqa")
    assert first.context == second.context == CONTEXT
    assert "What is full?" in second.prompt
    assert (first.chat, first.cut, first.turns[0].limit) == (True, True, 32)
    (labelled,) = read.samples("trec_e")
    assert (labelled.chat, labelled.groups) == (False, {"length": "4-8k"})
    assert read.score("trec_e", labelled.turns[0].reference, "Sea") == 1
    assert "not comparable" in read.notes[0]


def test_longbench_in_its_own_words(tmp_path):
    small_files.longbench(tmp_path / "data")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/dataset2prompt.json").write_text('{"hotpotqa": "T {context} Q {input}"}')
    (tmp_path / "config/dataset2maxlen.json").write_text('{"hotpotqa": 5}')
    read = LongBench(tmp_path, Options())
    first, _ = read.samples("hotpotqa")
    assert first.prompt == f"T {CONTEXT} Q What is calm?"
    assert first.turns[0].limit == 5
    assert not read.notes
    with pytest.raises(ValueError, match="has no entry 'trec'"):
        next(iter(read.samples("trec_e")))


def test_longbench2(tmp_path):
    small_files.longbench2(tmp_path)
    read = LongBench2(tmp_path, Options())
    first, second = read.samples(*read.tasks())
    assert (first.groups, second.groups["difficulty"]) == ({"difficulty": "easy", "length": "short"}, "hard")
    assert "(B) thing B" in first.prompt
    assert read.score("choice", "B", "The correct answer is (B)") == 1
    (tmp_path / "0shot.txt").write_text("$DOC$|$Q$|$C_A$$C_B$$C_C$$C_D$")
    own = next(iter(LongBench2(tmp_path, Options()).samples("choice")))
    assert own.prompt == f"{CONTEXT.strip()}|What is calm?|thing Athing Bthing Cthing D"


def test_infinitebench(tmp_path):
    small_files.infinitebench(tmp_path)
    read = InfiniteBench(tmp_path, Options())
    samples = {task: next(iter(read.samples(task))) for task in read.tasks()}
    assert sorted(samples) == ["code_run", "longbook_choice_eng", "math_find", "passkey"]
    assert samples["longbook_choice_eng"].turns[0].reference == ["a boat", "B"]
    assert "C. a cow" in samples["longbook_choice_eng"].prompt
    assert "func_12(-3) is" in samples["code_run"].prompt
    assert "What is the largest number in the following list?" in samples["math_find"].prompt
    assert samples["passkey"].turns[0].limit == 6


def test_infinitebench_in_its_own_words(tmp_path):
    small_files.infinitebench(tmp_path)
    # Read as literals: what would run, or is not literal, is passed over.
    source = "raise SystemExit\nother = open\nyarn_mistral_templates = {'passkey': 'P {context}' '|{input}'}"
    (tmp_path / "prompt.py").write_text(source)
    read = InfiniteBench(tmp_path, Options())
    assert next(iter(read.samples("passkey"))).prompt == f"P {CONTEXT}|What is the key?"
    assert not read.notes


def test_babilong(tmp_path):
    small_files.babilong(tmp_path)
    read = BabiLong(tmp_path, Options())
    assert read.tasks() == ["0k/qa2", "4k/qa1"]
    (sample,) = read.samples("4k/qa1")
    assert sample.prompt.endswith("</context>\n\nQuestion: Where is Mary?")
    assert read.score("4k/qa1", sample.turns[0].reference, "The garden.") == 1
    parts = {"instruction": "I", "examples": "E", "post_prompt": "P"}
    (tmp_path / "prompts.py").write_text(f"DEFAULT_PROMPTS = {{'qa1': {parts!r}}}")
    (sample,) = BabiLong(tmp_path, Options()).samples("4k/qa1")
    assert sample.prompt.startswith("I\n\nE\n\nP\n\n<context>\nThe sea")


def test_scbench_as_a_conversation(tmp_path):
    small_files.scbench(tmp_path)
    (sample,) = ScBench(tmp_path, Options()).samples("scbench_kv")
    assert sample.prompt == f"{CONTEXT}\n\nKey 1?"
    assert [turn.history for turn in sample.turns] == [
        (),
        (("value 1", "Key 2?"),),
        (("value 1", "Key 2?"), ("value 2", "Key 3?")),
    ]
    assert {turn.tail for turn in sample.turns} == {""}


def test_scbench_one_by_one(tmp_path):
    small_files.scbench(tmp_path)
    (tmp_path / "eval_utils.py").write_text(
        "multiturn_templates = {'scbench_kv': 'J\\n{context}\\n\\nQ {input}'}"
    )
    (sample,) = ScBench(tmp_path, Options(requests=True)).samples("scbench_kv")
    assert sample.prompt == f"J\n{CONTEXT}\n\n"
    assert [turn.tail for turn in sample.turns] == ["Q Key 1?", "Q Key 2?", "Q Key 3?"]
    assert not any(turn.history for turn in sample.turns)


def test_scbench_does_not_score_code(tmp_path):
    small_files.scbench(tmp_path)
    write_lines(tmp_path / "scbench_repoqa.jsonl", {})
    read = ScBench(tmp_path, Options())
    with pytest.raises(ValueError, match="leave it out with --tasks scbench_kv"):
        read.check("scbench_repoqa")


@pytest.mark.parametrize("depth", [0, 50, 100])
@pytest.mark.parametrize("length", [160, 401])
def test_a_grid_has_its_lengths_and_depths(length, depth, tmp_path):
    (tmp_path / "text.txt").write_text(CONTEXT)
    options = Options(byte_tokenizer(), lengths=(length,), depths=(depth,))
    (sample,) = Needle(tmp_path, options).samples("niah")
    (value,) = sample.turns[0].reference
    used = count_tokens(byte_tokenizer(), sample.prompt + sample.reply) + sample.turns[0].limit
    assert length - 4 < used <= length
    at = sample.prompt.index(f"is {value}.") / len(sample.prompt)
    assert abs(at - depth / 100) < 0.35
    assert sample.groups == {"length": str(length), "depth": str(depth)}


def test_a_grid_is_of_shipped_texts_and_the_same_each_time():
    options = Options(byte_tokenizer(), lengths=(300,), depths=(0, 50), repeats=2)
    once, again = (list(Needle(None, options).samples("niah")) for _ in range(2))
    assert once == again
    assert len({sample.prompt for sample in once}) == 4


def test_a_grid_without_room_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text(CONTEXT)
    with pytest.raises(ValueError, match="has no room"):
        list(Needle(tmp_path, Options(byte_tokenizer(), lengths=(20,))).samples("niah"))


def test_needlebench(tmp_path):
    small_files.needlebench(tmp_path)
    read = NeedleBench(tmp_path, Options(byte_tokenizer(), lengths=(700,), depths=(0, 50, 100)))
    assert read.tasks() == ["single_en", "multi_en"]
    samples = list(read.samples("single_en"))
    assert [sample.groups["depth"] for sample in samples] == ["0", "50", "100"]
    assert all(sample.turns[0].reference[0][0] in sample.prompt for sample in samples)
    (several,) = read.samples("multi_en")
    assert all(needle in several.prompt for needle, _, _ in several.turns[0].reference)
    assert read.score("multi_en", several.turns[0].reference, "red and blue") == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - {"niah"}))
def test_a_folder_without_files_says_what_is_expected(name, tmp_path):
    with pytest.raises(ValueError, match=r"there (are|is) no") as refused:
        BENCHMARKS[name](tmp_path, Options()).tasks()
    assert "json" in str(refused.value)


@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - {"niah"}))
def test_no_folder(name, tmp_path):
    for data, said in ((None, "--data DIR"), (tmp_path / "none", "there is no directory")):
        with pytest.raises(ValueError, match=said):
            BENCHMARKS[name](data, Options()).tasks()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"input": "x"', "hotpotqa.jsonl, line 2: not JSON"),
        ("[1]", "line 2: [1] is not a JSON object"),
        (json.dumps({"context": "x", "input": "y"}), "line 2: there is no field 'answers'"),
        (json.dumps(longbench_record(answers=[])), "must be a list of texts"),
        (json.dumps(longbench_record(context=3)), "the field 'context' is 3; it must be text"),
    ],
)
def test_damaged_files(line, said, tmp_path):
    (tmp_path / "hotpotqa.jsonl").write_text(json.dumps(longbench_record()) + "\n" + line + "\n")
    with pytest.raises(ValueError, match="line") as refused:
        list(LongBench(tmp_path, Options()).samples("hotpotqa"))
    assert said in str(refused.value)


def test_a_line_separator_within_text_does_not_end_a_record(tmp_path):
    write_lines(tmp_path / "hotpotqa.jsonl", longbench_record(context="a\u2028b"))
    (sample,) = LongBench(tmp_path, Options()).samples("hotpotqa")
    assert sample.context == "a\u2028b"
