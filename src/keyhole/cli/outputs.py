"""Result files, checked before the long work; `keyhole.core.files` writes them."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

_PLOTS = (".png", ".pdf", ".svg")


def check_writable(path: Path | None, option: str) -> None:
    """Make the folder of a file that is to be written, and make sure that it can be.

    Raises:
        ValueError: it cannot.
    """
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} {str(path)!r} is a directory; give the name of a file")
    if path.parent.is_file():
        raise ValueError(f"cannot write {option} {str(path)!r}: {str(path.parent)!r} is a file, not a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {option} {str(path)!r}: {error.strerror}") from error


def check_plot(path: Path | None) -> None:
    """Make sure that a plot can be drawn into a file of that name.

    Raises:
        ValueError: no such kind of file, or matplotlib is not installed.
    """
    if path is None:
        return
    if path.suffix.lower() not in _PLOTS:
        raise ValueError(
            f"a plot cannot be written to {str(path)!r}; its name must end in {', '.join(_PLOTS)}"
        )
    if find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib; install it with: pip install 'keyhole[plot]'")
