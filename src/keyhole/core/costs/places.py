"""Where cost constants come from: the package, or the user's directory once `keyhole tune` has measured."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

HOME = "KEYHOLE_HOME"
VARIABLE = "KEYHOLE_COSTS"
_CHOICES = ("", "shipped", "zero")


def user_directory() -> Path:
    """Where Keyhole keeps what belongs to the user: KEYHOLE_HOME, or the system's place for settings."""
    named = os.environ.get(HOME)
    return Path(named).expanduser() if named else platformdirs.user_config_path("keyhole", appauthor=False)


def user_file(machine: str) -> Path:
    """The constants that `keyhole tune` writes for a class of machine."""
    return user_directory() / "costs" / f"{machine}.json"


def shipped_file(machine: str) -> Path:
    """The constants in the package for a class of machine."""
    return Path(__file__).parent / f"{machine}.json"


def choice() -> str:
    """What KEYHOLE_COSTS asks for: `shipped` ignores the user's constants, `zero` makes selecting free.

    Raises:
        ValueError: another word.
    """
    named = os.environ.get(VARIABLE, "")
    if named not in _CHOICES:
        raise ValueError(
            f"{VARIABLE}={named!r} is not understood; give shipped or zero, or unset it to use tuned "
            "constants if there are any"
        )
    return named
