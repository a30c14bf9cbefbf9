"""The one place where errors become messages and exit codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer

from keyhole.cli.console import stderr
from keyhole.core.errors import UnsupportedCacheError

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

T = TypeVar("T")


def guarded(run: Callable[[], T], *, show_traceback: bool) -> T:
    """Run a command; an error it raises becomes one line on stderr and an exit code.

    Errors that a user can fix are ValueErrors, or Keyhole's own kinds of TypeError.
    """
    try:
        return run()
    except KeyboardInterrupt:
        stderr().print("[yellow]interrupted[/]")
        raise typer.Exit(INTERRUPTED) from None
    except (ValueError, UnsupportedCacheError) as error:
        code, said = BAD_INPUT, str(error)
        cause = error
    except Exception as error:
        if _is_for_typer(error):
            raise
        code, said = FAILED, f"{type(error).__name__}: {error}"
        cause = error
    if show_traceback:
        raise cause
    stderr().print("[bold red]error:[/]", _shown(said, code), highlight=False)
    raise typer.Exit(code) from None


def _is_for_typer(error: Exception) -> bool:
    """Exits, usage errors and closed pipes, which typer itself handles."""
    return isinstance(error, (typer.Abort, BrokenPipeError)) or hasattr(error, "exit_code")


def _shown(said: str, code: int) -> str:
    from rich.markup import escape

    hint = "; run `keyhole --traceback ...` to see where it arose" if code == FAILED else ""
    return escape(said + hint)
