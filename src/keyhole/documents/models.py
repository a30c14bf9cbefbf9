"""Models by name, each loaded once, and told apart without reading all their weights each time.

Keys and values belong to a model's identity (`keyhole.engines.transformers.identity`), for which all weights
are read. What it was is noted beside the store, with sizes and times of the files that the model was loaded
from: as long as these stay, so does it. That a model was served by this version is noted likewise.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import transformers

from keyhole.core.files import write_text
from keyhole.core.model_files import find_model, joined_name, split_name, stamps
from keyhole.core.version import __version__
from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.engines.transformers.support import passed_before
from keyhole.generation.loading import Loaded, load_model
from keyhole.models import default_model

_VERSION = f"{__version__}, transformers {transformers.__version__}"
_LOADING = threading.Lock()  # transformers cannot load two models at once in one process


class Models:
    """Loaded models, and what tells them from others; `notes` is a file that may be lost."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._loaded: dict[str, Loaded] = {}
        self._identities: dict[str, str] = {}
        self._from_files: set[str] = set()  # names whose model was loaded here

    def get(self, name: str) -> Loaded:
        """The model of a name, "" for the embedded one."""
        with _LOADING:
            if name not in self._loaded:
                self._loaded[name] = load_model(_source(name))
                self._from_files.add(name)
                if (self._noted(_files(name)) or {}).get("served"):
                    passed_before(self._loaded[name].model)
            return self._loaded[name]

    def put(self, name: str, loaded: Loaded) -> None:
        """Serve a model that somebody loaded by a name, in place of another one of that name."""
        self._loaded[name] = loaded
        self._identities.pop(name, None)
        self._from_files.discard(name)

    def beside(self, name: str, loaded: Loaded) -> Models:
        """Other models with the same notes: the model of a name, with a tokenizer of its own."""
        others = Models(self._notes)
        others._loaded[name], others._identities[name] = loaded, self.identity(name)
        return others

    def holds(self, name: str, loaded: Loaded) -> bool:
        """Whether this very model is served by a name."""
        found = self._loaded.get(name)
        return found is not None and found.model is loaded.model

    def served(self, name: str) -> None:
        """Note that the model of a name can be served; a later process does not try it again."""
        files = _files(name) if name in self._from_files else None
        noted = self._noted(files)
        if files is not None and noted is not None and not noted.get("served"):
            self._note(files, {**noted, "served": True})

    def identity(self, name: str) -> str:
        """What tells the model from others."""
        if name not in self._identities:
            self._identities[name] = self._found(name)
        return self._identities[name]

    def _found(self, name: str) -> str:
        # Weights of a model in memory may be others than those of the files that it names.
        given = name in self._loaded and name not in self._from_files
        files = None if given else _files(name)
        noted = self._noted(files)
        if noted is not None:
            return str(noted["identity"])
        found = fingerprint(self.get(name).model)
        if files is not None:
            self._note(files, {"files": files["files"], "identity": found})
        return found

    def _noted(self, files: dict[str, Any] | None) -> dict[str, Any] | None:
        """What is noted of the model of these files, as they are now."""
        if files is None:
            return None
        noted = self._read()["models"].get(files["path"])
        return noted if noted is not None and noted["files"] == files["files"] else None

    def _note(self, files: dict[str, Any], said: dict[str, Any]) -> None:
        models = self._read()["models"] | {files["path"]: said}
        with suppress(OSError):  # it is found again each time then
            write_text(self._notes, json.dumps({"version": _VERSION, "models": models}, indent=1))

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            held = json.loads(self._notes.read_text(encoding="utf-8"))
            known = isinstance(held, dict) and held.get("version") == _VERSION
            if known and isinstance(held.get("models"), dict):
                return held
        return {"models": {}}


def model_name(model: str | Path | None) -> str:
    """The name of a model that is loaded by `model`, the same from every working directory."""
    if model is None:
        return ""
    plain, form = split_name(model)
    path = Path(plain).expanduser()
    # The embedded model has no name, but may be wanted in another form.
    found = str(path.absolute()) if str(plain) and path.exists() else str(plain)
    return str(joined_name(found, form))


def _source(name: str) -> str | Path:
    """What to load by a name, which is "" for the embedded model."""
    plain, form = split_name(name)
    if str(plain):
        return name
    return joined_name(default_model(), form)


def _files(name: str) -> dict[str, Any] | None:
    """Sizes and times of the files a model is loaded from; None of one that is not loaded from files here."""
    with suppress(ValueError, OSError):
        source, (_, form) = Path(find_model(_source(name))), split_name(name)
        found = stamps(source)
        if found:
            return {"path": str(joined_name(source.resolve(), form)), "files": found}
    return None
