"""Options and steps that the commands about documents share; torch is imported by none of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli.early import within

if TYPE_CHECKING:
    from keyhole.documents.library import Library
    from keyhole.documents.store import Store

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_MOST = 2**31 - 1
_KV_DTYPES = ("full", "int8", "int4", "int3", "int2")
_PLACES = ("disk", "host", "device")


def size(value: str | None) -> str | None:
    if value is not None and bytes_of(value) < 1:
        raise typer.BadParameter(f"{value} is not in the range: at least 1 byte.")
    return value


def bytes_of(value: str) -> int:
    """Bytes of a size such as 2GB, 512MiB or 1000000."""
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise typer.BadParameter(f"{value!r} is no size; give bytes, or such as 500MB or 20GB.")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _word(allowed: tuple[str, ...]) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        if value is not None and value not in allowed:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(allowed)}.")
        return value

    return check


Where = Annotated[
    Path | None,
    typer.Option(
        "--store", help="Directory of the store.", show_default="KEYHOLE_STORE, or the user's data directory"
    ),
]
Quota = Annotated[
    str | None,
    typer.Option(
        callback=size, help="Size the store may take, as 20GB.", show_default="a tenth of the free disk"
    ),
]
Name = Annotated[str | None, typer.Option(help="Name of the document.", show_default="that of the file")]
KvDtype = Annotated[
    str | None,
    typer.Option(
        callback=_word(_KV_DTYPES),
        help="Precision of stored keys and values: full, int8, int4, int3 or int2.",
        show_default="as the method says",
    ),
]
Place = Annotated[
    str | None,
    typer.Option(
        callback=_word(_PLACES),
        help="disk reads what a step selects where it is stored; host and device load everything.",
        show_default="disk for methods that select, device for others",
    ),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, max=_MOST, help="Maximum length of an answer, in tokens.")]
Temperature = Annotated[
    float, typer.Option(callback=within(0, 1e6), help="Sampling temperature; 0 is greedy decoding.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the sampling.")]
Exact = Annotated[
    bool, typer.Option("--exact", help="Let the tokens of the question read the whole document.")
]


def store_at(path: Path | None, quota: str | None = None) -> Store:
    """The store alone, without torch."""
    from keyhole.documents.paths import default_store
    from keyhole.documents.store import Store

    return Store(path or default_store(), None if quota is None else bytes_of(quota))


def library_at(store: Path | None, quota: str | None = None, *, quiet: bool = False) -> Library:
    """The documents of a store; what there is to notice goes to stderr."""
    from keyhole.cli.console import stderr
    from keyhole.documents.library import Library

    console = stderr()
    notice = (lambda _: None) if quiet else (lambda said: console.print(f"[yellow]note:[/] {_escaped(said)}"))
    return Library(store, quota=None if quota is None else bytes_of(quota), notice=notice)


def _escaped(said: str) -> str:
    from rich.markup import escape

    return escape(said)


@contextmanager
def resumable(again: str) -> Iterator[None]:
    """Say, when it is interrupted, how reading goes on."""
    try:
        yield
    except KeyboardInterrupt:
        from keyhole.cli.console import stderr

        stderr().print(f"what was read so far is kept; {_escaped(again)} goes on from there", highlight=False)
        raise


def set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
