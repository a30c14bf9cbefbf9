"""`keyhole view`, and the options of the commands that record what they read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli.outputs import check_writable

if TYPE_CHECKING:
    from keyhole.view import Recorder

View = Annotated[Path | None, typer.Option(help="Write a page that shows what was read, as HTML.")]
RecordFile = Annotated[
    Path | None, typer.Option("--record", help="Write the record of what was read, for `keyhole view`.")
]
ExactMass = Annotated[
    bool,
    typer.Option(
        "--exact-mass",
        help="With --view or --record: also compute what attention was missed, which scores every key.",
    ),
]
_SHOWN = 2  # records on a page


@dataclass(frozen=True)
class Wanted:
    """The files that a command is asked for beside its answer.

    Raises:
        ValueError: one of them cannot be written, or `exact_mass` is asked for and no file to put it in.
    """

    view: Path | None
    record: Path | None
    exact_mass: bool

    def __post_init__(self) -> None:
        check_writable(self.view, "--view")
        check_writable(self.record, "--record")
        if self.view is not None and self.view == self.record:
            raise ValueError(f"--view and --record both name {str(self.view)!r}; give two files")
        if self.exact_mass and not self.any:
            raise ValueError("--exact-mass is for what is recorded; give --view FILE.html or --record FILE")

    @property
    def any(self) -> bool:
        return self.view is not None or self.record is not None

    def recorder(self) -> Recorder | None:
        """What an answer is to be recorded by; None where no file is asked for."""
        if not self.any:
            return None
        from keyhole.view import Recorder

        return Recorder(exact=self.exact_mass)

    def write(self, recorder: Recorder | None) -> None:
        """Write the files, from the answer that was recorded last."""
        if recorder is None:
            return
        if not recorder.records:
            raise ValueError("nothing that Keyhole serves was read, so there is no record")
        from keyhole.view import page, write_record

        record = recorder.records[-1]
        if self.record is not None:
            write_record(record, self.record)
        if self.view is not None:
            _write(self.view, page([record]))


def view(
    runs: Annotated[list[Path], typer.Argument(help="Record of a run, or two, to be shown side by side.")],
    out: Annotated[
        Path | None, typer.Option(help="The page.", show_default="the first record's name, with .html")
    ] = None,
) -> None:
    """Make a page that shows what a run read. Records are written by `keyhole ask ... --record FILE`."""
    if len(runs) > _SHOWN:
        raise ValueError(f"{len(runs)} records are too many for a page; give 1 or 2")
    from keyhole.view import page, read_record

    records = [read_record(run) for run in runs]
    path = out or runs[0].with_suffix(".html")
    if path in runs:
        raise ValueError(f"{str(path)!r} is a record; give the page another name with --out")
    check_writable(path, "--out")
    _write(path, page(records))
    typer.echo(str(path))


def _write(path: Path, data: bytes) -> None:
    from keyhole.core.files import write_whole

    write_whole(path.expanduser(), lambda temporary: temporary.write_bytes(data))
