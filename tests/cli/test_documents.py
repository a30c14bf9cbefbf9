"""The commands about documents: what they print, what they refuse, and what they do not import."""

import json
import subprocess
import sys

import pytest

METHOD = "oracle(budget=0.2, sinks=2, window=6)"


@pytest.fixture
def run(keyhole, tmp_path, monkeypatch):
    monkeypatch.setenv("KEYHOLE_STORE", str(tmp_path / "store"))
    return keyhole


@pytest.fixture
def added(run, prompt_file, model_folder):
    result = run("add", prompt_file, "--model", model_folder, "--method", METHOD)
    assert result.exit_code == 0, result.output
    return result


def listed(run):
    return json.loads(run("documents", "--json").stdout)


def test_add_says_what_it_took(added, run):
    assert added.stdout.startswith("document: ")
    [one] = listed(run)
    assert (one["name"], one["method"], one["finished"]) == ("document", METHOD, True)


@pytest.mark.usefixtures("added")
def test_ask_answers_on_stdout(run, prompt_file):
    asked = "document", "The sea is", "--max-new-tokens", 4
    first = run("ask", *asked)
    assert first.exit_code == 0, first.output
    assert "method" in first.stderr
    quiet = run("ask", *asked, "--quiet")
    assert (quiet.stdout, quiet.stderr) == (first.stdout, "")
    assert run("ask", prompt_file, *asked[1:], "--quiet").stdout == first.stdout
    assert run("ask", *asked, "--place", "device", "--quiet").stdout == first.stdout
    assert len(listed(run)) == 1


def test_ask_adds_a_file_first(run, prompt_file, model_folder):
    asked = prompt_file, "The sea is", "--model", model_folder, "--method", METHOD, "--kv-dtype", "int8"
    assert run("ask", *asked, "--max-new-tokens", 2).exit_code == 0
    assert listed(run)[0]["method"] == METHOD.replace(")", ", kv_dtype=int8)")


def test_several_files_and_stdin(run, prompt_file, model_folder):
    given = "--model", model_folder, "--method", METHOD
    assert run("add", prompt_file, "-", "--name", "both", *given, input="From a pipe.").exit_code == 0
    assert listed(run)[0]["name"] == "both"


@pytest.mark.usefixtures("added")
def test_chat_answers_line_by_line(run):
    result = run("chat", "document", "--max-new-tokens", 3, input="The sea\n\nThe moon\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") >= 2


@pytest.mark.usefixtures("added")
def test_list_verify_gc_remove(run, tmp_path):
    shown = run("documents").stdout
    assert "document" in shown
    assert "1 document in" in shown
    assert "clean" in run("documents", "verify").stdout
    assert "0 files removed" in run("documents", "gc").stdout
    block = next((tmp_path / "store" / "blocks").rglob("*.safetensors"))
    data = bytearray(block.read_bytes())
    data[-100] ^= 1
    block.write_bytes(data)
    damaged = run("documents", "verify")
    assert damaged.exit_code == 1
    assert str(block) in damaged.stderr.replace("\n", "")
    assert run("documents", "verify", "--repair").exit_code == 0
    assert "clean" in run("documents", "verify").stdout


@pytest.mark.usefixtures("added")
def test_remove(run):
    assert "freed" in run("remove", "document").stdout
    assert listed(run) == []


def test_interrupting_says_how_to_go_on(run, prompt_file, model_folder, monkeypatch):
    from keyhole.documents import adding

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(adding, "read_blocks", interrupted)
    result = run("add", prompt_file, "--model", model_folder, "--method", METHOD)
    assert result.exit_code == 130
    assert "goes on from there" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "nope.txt"], "does not exist"),
        (["add", "-"], "needs a name"),
        (["add", "FILE", "--method", "pqcash"], "pqcash"),
        (["add", "FILE", "--kv-dtype", "int5"], "none of full, int8, int4, int3"),
        (["add", "FILE", "--quota", "much"], "is no size"),
        (["add", "FILE", "--name", " "], "cannot be used"),
        (["add", "FILE", "--model", "/nowhere/model"], "/nowhere/model"),
        (["ask", "nope", "What?"], "no document 'nope'"),
        (["ask", "FILE", " "], "question is empty"),
        (["ask", "FILE", "What?", "--place", "cloud"], "none of disk, host, device"),
        (["chat", "-"], "cannot be stdin"),
        (["remove", "nope"], "nope"),
    ],
)
def test_refusals(refused, tmp_path, monkeypatch, prompt_file, arguments, said):
    monkeypatch.setenv("KEYHOLE_STORE", str(tmp_path / "store"))
    given = [str(prompt_file) if argument == "FILE" else argument for argument in arguments]
    assert said in " ".join(refused(*given).split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["documents"],
        ["documents", "gc"],
        ["documents", "verify"],
        ["remove", "nope"],
        ["add", "nope.txt"],
        ["ask", "nope.pdf", "x"],
    ],
)
def test_torch_is_not_imported(tmp_path, arguments):
    code = (
        "import sys; from keyhole.cli import main\n"
        f"sys.argv = ['keyhole', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {"KEYHOLE_STORE": str(tmp_path / "store"), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
