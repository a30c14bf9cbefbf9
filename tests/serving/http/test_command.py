"""`keyhole serve`: what is refused before a model is loaded."""

import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from keyhole.cli import app


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text("k" * 32)
    path.chmod(0o600)
    return path


def refused(*arguments):
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "nosuch"], "unknown method"),
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--api-key-file", "/nonexistent/keys"], "cannot read the key file"),
        (["--cors-origin", "*"], "every web page"),
        (["--port", "70000"], "'--port'"),
        (["--slots", "0"], "'--slots'"),
        (["--queue", "-1"], "'--queue'"),
        (["--quota", "many"], "no size"),
        (["--memory", "0"], "at least 1 byte"),
        (["--max-context", "1"], "'--max-context'"),
        (["--model", "/nonexistent/model"], "no model directory"),
    ],
)
def test_wrong_options_are_refused(arguments, said):
    assert said in refused(*arguments)


def test_a_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}" in refused("--port", port)


def test_a_key_file_that_others_can_read_is_refused(key_file):
    key_file.chmod(0o644)
    assert "chmod 600" in refused("--api-key-file", key_file)


def test_a_missing_extra_is_named(monkeypatch):
    from keyhole.cli import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else name)
    assert "uvicorn; pip install 'keyhole[server]'" in refused()


def test_options_are_checked_without_torch():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom keyhole.cli import app\n"
        "result = CliRunner().invoke(app, ['serve', '--host', '0.0.0.0'])\n"
        "sys.exit(result.exit_code if 'torch' not in sys.modules else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 2
