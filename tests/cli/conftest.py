import pytest
from typer.testing import CliRunner

from keyhole.cli import app
from tests.evaluation.small_text import byte_model, byte_tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny random model over bytes, as Hugging Face folders are."""
    folder = tmp_path_factory.mktemp("model")
    byte_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def keyhole():
    """Runs the command line in this process; returns typer's result."""

    def run(*arguments, **options):
        return CliRunner().invoke(app, list(map(str, arguments)), **options)

    return run


@pytest.fixture
def refused(keyhole):
    """Runs what must end with exit code 2, a message without a traceback, and nothing on stdout."""

    def run(*arguments, **options):
        result = keyhole(*arguments, **options)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        return result.stderr

    return run


@pytest.fixture
def prompt_file(tmp_path):
    path = tmp_path / "document.txt"
    path.write_text("The sea is calm tonight. The tide is full, the moon lies fair upon the straits. " * 3)
    return path
