"""The frame around the commands: help, version, errors and exit codes."""

import subprocess
import sys

import pytest
import typer

from keyhole import UnsupportedCacheError, __version__
from keyhole.cli.errors import guarded


def test_help_loads_neither_torch_nor_transformers():
    code = "import sys, keyhole.cli; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version(keyhole):
    result = keyhole("--version")
    assert (result.exit_code, result.stdout) == (0, f"keyhole {__version__}\n")


@pytest.mark.parametrize("command", ["compare", "generate", "methods", "train", "tune"])
def test_each_command_has_help(keyhole, command):
    assert command in keyhole("--help").stdout
    assert keyhole(command, "--help").exit_code == 0


def test_unknown_commands_and_options_are_bad_usage(keyhole):
    assert keyhole("compere").exit_code == 2
    assert keyhole("compare", "--budgest", "0.1").exit_code == 2


def fails(error, *, show_traceback=False):
    def run():
        raise error

    return guarded(run, show_traceback=show_traceback)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("budget 7 [is] wrong"), 2, "error: budget 7 [is] wrong"),
        (UnsupportedCacheError("no"), 2, "error: no"),
        (TypeError("a slip of ours"), 1, "TypeError: a slip of ours"),
        (RuntimeError("out of memory"), 1, "keyhole --traceback"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(error, code, said, capsys):
    with pytest.raises(typer.Exit) as left:
        fails(error)
    assert left.value.exit_code == code
    assert said in capsys.readouterr().err


def test_the_traceback_is_there_for_who_asks():
    with pytest.raises(ValueError, match="seven"):
        fails(ValueError("seven"), show_traceback=True)


@pytest.mark.parametrize("error", [typer.Exit(3), typer.BadParameter("x"), BrokenPipeError()])
def test_what_typer_handles_is_left_to_it(error):
    with pytest.raises(type(error)):
        fails(error)


def test_an_error_of_a_command_ends_with_its_code(keyhole, prompt_file):
    result = keyhole("generate", "--prompt-file", prompt_file, "--method", "nosuch")
    assert result.exit_code == 2
    assert "unknown method 'nosuch'" in result.stderr
    result = keyhole("--traceback", "generate", "--prompt-file", prompt_file, "--method", "nosuch")
    assert "nosuch" in str(result.exception)
