"""Small files of each benchmark's form, written here."""

import json
from pathlib import Path

CONTEXT = "The sea is calm tonight. The tide is full. " * 3


def write_lines(path: Path, *records: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


def ruler(folder: Path) -> None:
    needle = {"index": 0, "input": CONTEXT + "What is it?", "outputs": ["42"], "length": 60}
    write_lines(folder / "vt/validation.jsonl", needle, needle | {"index": 1, "answer_prefix": " It is"})
    write_lines(folder / "qa_1/validation.jsonl", needle | {"outputs": ["sea", "tide"]})


def longbench_record(**changes) -> dict:
    record = {
        "input": "What is calm?",
        "context": CONTEXT,
        "answers": ["the sea"],
        "length": 27,
        "language": "en",
    }
    return record | {"dataset": "hotpotqa", "all_classes": None, "_id": "a1"} | changes


def longbench(folder: Path) -> None:
    write_lines(
        folder / "hotpotqa.jsonl", longbench_record(), longbench_record(_id="a2", input="What is full?")
    )
    labels = {"answers": ["Sea"], "all_classes": ["Sea", "Tide"], "length": 5000}
    write_lines(folder / "trec_e.jsonl", longbench_record(**labels))


def longbench2(folder: Path) -> None:
    record = {"_id": "x", "context": CONTEXT, "question": "What is calm?", "answer": "B"}
    record |= {f"choice_{letter}": f"thing {letter}" for letter in "ABCD"}
    record |= {"difficulty": "easy", "length": "short", "domain": "d", "sub_domain": "s"}
    folder.mkdir(parents=True, exist_ok=True)
    hard = record | {"_id": "y", "difficulty": "hard", "answer": "C"}
    (folder / "data.json").write_text(json.dumps([record, hard]))


def infinitebench(folder: Path, context: str = CONTEXT) -> None:
    record = {"id": 0, "context": context, "input": "What is the key?", "answer": ["12345"], "options": []}
    write_lines(folder / "passkey.jsonl", record)
    choice = {"answer": ["a boat"], "options": ["a house", "a boat", "a cow", "a hat"]}
    write_lines(folder / "longbook_choice_eng.jsonl", record | choice)
    write_lines(folder / "code_run.jsonl", record | {"input": "Compute func_12(-3) now.", "answer": 7})
    write_lines(
        folder / "math_find.jsonl", record | {"input": "The largest number of the list is", "answer": 9}
    )


def babilong(folder: Path) -> None:
    record = {"input": CONTEXT + "Mary went to the garden.", "question": "Where is Mary?", "target": "garden"}
    (folder / "qa1").mkdir(parents=True)
    (folder / "qa1/4k.json").write_text(json.dumps([record]))
    write_lines(folder / "0k/qa2.jsonl", record)


def scbench(folder: Path) -> None:
    turns = [{"input": f"Key {n}?", "answer": f"value {n}"} for n in (1, 2, 3)]
    write_lines(folder / "scbench_kv.jsonl", {"id": 7, "context": CONTEXT, "multi_turns": turns})


def needlebench(folder: Path) -> None:
    facts = [
        {"needle": f"The {thing} is {colour}.", "arg2": colour, "language": "English"}
        | {"retrieval_question": f"What colour is the {thing}?"}
        for thing, colour in (("fox", "red"), ("hat", "blue"), ("cup", "green"))
    ]
    write_lines(folder / "needles.jsonl", *facts)
    write_lines(folder / "Essays.jsonl", {"text": CONTEXT}, {"text": CONTEXT})
