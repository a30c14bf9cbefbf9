"""What was read: the record of a run, its file, and a page that shows it."""

from typing import TYPE_CHECKING, Any

from keyhole.view.file import RecordError, read_record, write_record
from keyhole.view.page import page
from keyhole.view.record import Record, Step

if TYPE_CHECKING:
    from keyhole.view.recorder import Recorder

__all__ = ["Record", "RecordError", "Recorder", "Step", "page", "read_record", "write_record"]


def __getattr__(name: str) -> Any:
    # Only recording needs torch.
    if name == "Recorder":
        from keyhole.view.recorder import Recorder

        return Recorder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
