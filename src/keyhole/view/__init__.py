"""What was read: the record of a run, its file, and a page that shows it."""

from keyhole.view.file import RecordError, read_record, write_record
from keyhole.view.page import page
from keyhole.view.record import Record, Step
from keyhole.view.recorder import Recorder

__all__ = ["Record", "RecordError", "Recorder", "Step", "page", "read_record", "write_record"]
