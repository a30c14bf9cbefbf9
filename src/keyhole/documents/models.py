"""Models by name, each loaded once, and told apart without reading all their weights each time.

Keys and values belong to a model's identity (`keyhole.engines.transformers.identity`), for which all weights
are read. What it was is noted beside the store, with sizes and times of the files that the model was loaded
from: as long as these stay, so does it.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import transformers

from keyhole.core.files import write_text
from keyhole.core.model_files import find_model
from keyhole.core.version import __version__
from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.generation.loading import Loaded, load_model
from keyhole.models import default_model

_VERSION = f"{__version__}, transformers {transformers.__version__}"
_LOADING = threading.Lock()  # transformers cannot load two models at once in one process
_COUNTED = (".safetensors", ".json", ".bin", ".gguf", ".txt", ".model", ".jinja")


class Models:
    """Loaded models, and what tells them from others; `notes` is a file that may be lost."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._loaded: dict[str, Loaded] = {}
        self._identities: dict[str, str] = {}
        self._given: set[str] = set()  # names of those that somebody loaded

    def get(self, name: str) -> Loaded:
        """The model of a name, "" for the embedded one."""
        with _LOADING:
            if name not in self._loaded:
                self._loaded[name] = load_model(name or default_model())
            return self._loaded[name]

    def put(self, name: str, loaded: Loaded) -> None:
        """Serve a model that somebody loaded by a name, in place of another one of that name."""
        self._loaded[name] = loaded
        self._given.add(name)
        self._identities.pop(name, None)

    def identity(self, name: str) -> str:
        """What tells the model from others."""
        if name not in self._identities:
            self._identities[name] = self._found(name)
        return self._identities[name]

    def _found(self, name: str) -> str:
        # Weights of a model in memory may be others than those of the files that it names.
        files = None if name in self._given else _files(name)
        known = self._read()
        if files is not None and known.get("version") == _VERSION:
            noted = known.get("models", {}).get(files["path"])
            if noted is not None and noted["files"] == files["files"]:
                return str(noted["identity"])
        found = fingerprint(self.get(name).model)
        if files is not None:
            self._note(known, files, found)
        return found

    def _note(self, known: dict[str, Any], files: dict[str, Any], found: str) -> None:
        models = known.get("models", {}) if known.get("version") == _VERSION else {}
        models[files["path"]] = {"files": files["files"], "identity": found}
        with suppress(OSError):  # it is found again each time then
            write_text(self._notes, json.dumps({"version": _VERSION, "models": models}, indent=1))

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            held = json.loads(self._notes.read_text(encoding="utf-8"))
            return held if isinstance(held, dict) else {}
        return {}


def _files(name: str) -> dict[str, Any] | None:
    """Sizes and times of the files a model is loaded from; None of one that is not loaded from files here."""
    with suppress(ValueError, OSError):
        source = Path(find_model(name or default_model()))
        paths = [source] if source.is_file() else sorted(source.iterdir()) if source.is_dir() else []
        counted = [path for path in paths if path.suffix in _COUNTED]
        if counted:
            found = [[path.name, *_stamp(path)] for path in counted]
            return {"path": str(source.resolve()), "files": found}
    return None


def _stamp(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
