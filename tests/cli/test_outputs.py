import pytest

from keyhole.cli.outputs import check_plot, check_writable, write_whole


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("before")

    def fail(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_is_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "rows.json"
    write_whole(path, lambda temporary: temporary.write_text("after"))
    other = tmp_path / "other"
    other.touch()
    assert path.read_text() == "after"
    assert path.stat().st_mode == other.stat().st_mode


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
