"""Servers whose answers come from the real scheduler: in this process, and as a command of its own."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

from keyhole.serving.http.settings import Settings
from keyhole.serving.scheduler import Scheduler
from keyhole.view.served import ServedRecorder
from tests.serving.http.clients import running
from tests.serving.prompts import PQ


@contextmanager
def whole_server(loaded, library):
    """As `keyhole serve` makes it; its `port` and `scheduler`."""
    recorder = partial(ServedRecorder, loaded.tokenizer)
    settings = Settings(model="keyhole", records=True)
    with (
        Scheduler(loaded, library=library, recipe=PQ, memory=1 << 30, recorder=recorder) as scheduler,
        running(scheduler, settings) as found,
    ):
        found.scheduler = scheduler
        yield found


class Command:
    """`keyhole serve` at a free port, with documents in `store`."""

    def __init__(self, store):
        command = [sys.executable, "-m", "keyhole.cli", "serve", "--port", "0", "--method", PQ]
        self.process = subprocess.Popen(
            [*command, "--store", str(store)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"COLUMNS": "400"},
        )
        self.said = ""
        while not (found := re.search(r"serving keyhole by .* at (http://\S+);", self.said)):
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        self.url = found[1]

    def end(self):
        """What it said after it was asked to end, and its exit code."""
        self.process.terminate()
        _, said = self.process.communicate(timeout=60)
        return self.said + said, self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
