"""`keyhole tune` as users call it."""

import pytest

from keyhole.core.costs.table import FORMS, forget
from keyhole.kernels.backend import library
from keyhole.tuning import tune as tuning
from keyhole.tuning.measure import Point


@pytest.fixture(autouse=True)
def _own(monkeypatch, tmp_path):
    monkeypatch.setenv("KEYHOLE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KEYHOLE_COSTS")
    points = [
        Point(form, "quest", 8, 2, 64, 1, n, 0.1, 50 + n / 2, n) for form in FORMS for n in (1000, 2000, 4000)
    ]
    monkeypatch.setattr(tuning, "measure", lambda *_, **__: points)
    forget()
    yield
    forget()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "home" / "costs" / f"{library.level()}.json"


def test_it_shows_what_is_shipped_and_what_was_measured(keyhole, file):
    result = keyhole("tune")
    assert result.exit_code == 0, result.output
    assert "shipped, measured" in result.stdout
    assert "quest" in result.stdout
    assert file.exists()
    assert f"written to {file}" in result.stderr.replace("\n", "")


def test_a_dry_run_keeps_nothing(keyhole, tmp_path):
    result = keyhole("tune", "--dry-run")
    assert result.exit_code == 0
    assert "quest" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_output_goes_elsewhere(keyhole, tmp_path, file):
    assert keyhole("tune", "--output", tmp_path / "out.json").exit_code == 0
    assert (tmp_path / "out.json").exists()
    assert not file.exists()


def test_reset(keyhole, file):
    assert keyhole("tune", "--quiet").stderr == ""
    result = keyhole("tune", "--reset")
    assert f"removed {file}" in result.stderr.replace("\n", "")
    assert not file.exists()
    assert "no tuned constants" in keyhole("tune", "--reset").stderr


@pytest.mark.parametrize(
    "options", [("--reset", "--dry-run"), ("--reset", "--output"), ("--dry-run", "--output")]
)
def test_options_of_which_one_would_not_be_done_are_refused(refused, tmp_path, options):
    given = [(option, tmp_path / "out.json") if option == "--output" else (option,) for option in options]
    message = refused("tune", *(word for words in given for word in words))
    assert f"{options[0]} and {options[1]} do not go together" in message
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def nothing_measured(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("measured what cannot be kept")

    monkeypatch.setattr(tuning, "measure", refuse)


@pytest.mark.usefixtures("nothing_measured")
def test_a_place_that_cannot_be_written_is_refused_before_measuring(refused, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert "is a directory" in refused("tune", "--output", tmp_path)
    assert "--output" in refused("tune", "--output", tmp_path / "file" / "folder" / "out.json")
    monkeypatch.setenv("KEYHOLE_HOME", str(tmp_path / "file"))
    assert "KEYHOLE_HOME" in refused("tune")


def test_interrupted_it_keeps_what_was_there(keyhole, file, monkeypatch):
    assert keyhole("tune").exit_code == 0
    before = file.read_bytes()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "measure", interrupt)
    assert keyhole("tune").exit_code == 130
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_another_device_is_refused(refused):
    assert "--device 'gpu' is not one of cpu, cuda" in refused("tune", "--device", "gpu")


@pytest.mark.parametrize("options", [(), ("--shape", "Llama-3.2-1B", "--batch", "8")])
def test_the_old_name_is_refused_with_the_new_one(refused, options):
    assert "is now `keyhole tune`" in refused("bench", "calibrate", *options)


def test_tuned_constants_that_are_damaged_are_refused(refused, file, model_folder, prompt_file):
    file.parent.mkdir(parents=True)
    file.write_text("{")
    message = refused("generate", "--model", model_folder, "--prompt-file", prompt_file, "--method", "quest")
    assert "keyhole tune --reset" in message


@pytest.mark.parametrize("place", ["home", "output"])
def test_what_cannot_be_written_shows_before_the_measurement(keyhole, monkeypatch, tmp_path, place):
    monkeypatch.setattr(tuning, "measure", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KEYHOLE_HOME", str(tmp_path / ("file" if place == "home" else "home")))
    given = ["--output", tmp_path / "file" / "out.json"] if place == "output" else []
    result = keyhole("tune", *given)
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
