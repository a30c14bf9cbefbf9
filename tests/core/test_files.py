"""Files are whole or not there, and locks end with their process."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from keyhole.core.files import hold, locked, release, write_text, write_whole
from tests.limits import limited_files


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
    path, other = tmp_path / "new" / "rows.json", tmp_path / "other"
    write_text(path, "after")
    other.touch()
    assert path.read_text() == "after"
    assert path.stat().st_mode == other.stat().st_mode


def test_the_suffix_is_kept_while_it_is_written(tmp_path):
    write_whole(tmp_path / "plot.svg", lambda temporary: temporary.with_suffix(".svg").write_text("x"))
    assert [path.name for path in tmp_path.iterdir()] == ["plot.svg"]


def test_errors_name_the_path(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("before")
    with limited_files(100), pytest.raises(OSError, match=r"File too large.*rows\.json") as error:
        write_text(path, "x" * 1000)
    assert error.value.filename == str(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=r"rows\.json"):
        write_text(path / "below", "x")


def test_the_file_and_its_directory_are_synced_before_and_after_the_rename(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.readlink(f"/proc/self/fd/{handle}")))
    write_text(tmp_path / "rows.json", "x")
    assert ".partial-" in done[0]
    assert done[1:] == [str(tmp_path)]


def test_a_lock_excludes_threads_and_says_who_waits(tmp_path):
    lock, waits = locked(tmp_path / "lock", patience=0), locked(tmp_path / "lock", patience=0.02)
    with lock, pytest.raises(TimeoutError, match=str(tmp_path)), waits:
        pass
    inside, counted = [], []

    def work():
        with locked(tmp_path / "lock", patience=30):
            inside.append(1)
            counted.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert counted == [1] * 8


def test_a_lock_ends_with_its_process(tmp_path):
    script = (
        "from keyhole.core.files import locked; from pathlib import Path; import sys, time\n"
        "with locked(Path(sys.argv[1]), patience=0): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(TimeoutError), locked(tmp_path / "lock", patience=0.02):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "lock", patience=5):
        pass


def test_a_process_forked_inside_does_not_keep_a_lock(tmp_path):
    with locked(tmp_path / "lock", patience=0):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with locked(tmp_path / "lock", patience=1):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_that_is_held_is_not_waited_for(tmp_path):
    path = tmp_path / "lock"
    handle = hold(path)
    assert handle is not None
    assert hold(path) is None
    with pytest.raises(TimeoutError), locked(path, patience=0.02):
        pass
    release(handle)
    again = hold(path)
    assert again is not None
    release(again)
