import pytest

from keyhole.cli.outputs import check_plot, check_writable


def test_the_folder_is_made_and_nothing_else(tmp_path):
    check_writable(tmp_path / "a" / "b" / "rows.json", "--json")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    check_writable(None, "--json")


def test_no_folder_and_no_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="not a folder"):
        check_writable(tmp_path / "file" / "rows.json", "--json")
    with pytest.raises(ValueError, match="is a directory"):
        check_writable(tmp_path, "--json")


def test_a_folder_nobody_can_write_to():
    with pytest.raises(ValueError, match="cannot write --json"):
        check_writable(__import__("pathlib").Path("/proc/nowhere/rows.json"), "--json")


def test_plots_end_in_what_can_be_drawn(tmp_path):
    check_plot(tmp_path / "plot.PNG")
    check_plot(None)
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg"):
        check_plot(tmp_path / "plot.bmp")
