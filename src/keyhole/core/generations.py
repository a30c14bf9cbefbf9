"""Tensors and what there is to say about them in a directory, replaced as a whole.

`NAME.json`, the manifest, says all that is to be said and names one file of tensors,
`NAME-<generation>.safetensors`, with the digests of its contents. A save writes the tensors of a new
generation beside the old, then renames a new manifest over the old one, then removes the old tensors. Whoever
reads sees one whole generation. A save that is killed leaves the old one, and files that a later save
removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from keyhole.core.errors import SavedStateError
from keyhole.core.files import PARTIAL, locked, naming, write_text
from keyhole.core.tensorfile import read_tensors, write_tensors

_PATIENCE = 60.0  # seconds that a save waits for another one
_SEAL = '{"digest": "%s",'


@dataclass(frozen=True)
class Generations:
    """One named thing that is kept in a directory.

    Attributes:
        directory: `~` is expanded; ValueError for an empty one, TypeError for what is no path.
        name: what the files are called.
        format: of the tensors; others are refused.
        again: what to do about a thing that cannot be used, for messages.
    """

    directory: str | Path
    name: str
    format: int
    again: str

    @property
    def path(self) -> Path:
        """The directory."""
        given = os.fspath(self.directory)
        if not given:
            raise ValueError("the directory's name is empty; give '.' for the working directory")
        try:
            return Path(os.fsdecode(given)).expanduser()
        except RuntimeError as error:
            raise ValueError(f"{given!r}: {error}") from error

    @property
    def manifest_path(self) -> Path:
        return self.path / f"{self.name}.json"

    def write(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Replace what is there; a second writer waits for the first.

        Raises:
            ValueError: the path is that of a file.
            OSError: it cannot be written, with the path; what was there before can still be read.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"cannot save to {str(self.path)!r}: it is a file; give a directory")
        with naming(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with locked(self.path / f".{self.name}.lock", patience=_PATIENCE):
                older = self._is_unreadable()
                self._clean()
                try:
                    self._write(tensors, facts)
                finally:
                    self._clean(older=older)

    def _write(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        file = f"{self.name}-{uuid.uuid4().hex}.safetensors"
        digests = write_tensors(self.path / file, tensors)
        manifest = {"format": self.format, **facts, "file": file, "digests": digests}
        write_text(self.manifest_path, _sealed(json.dumps(manifest, indent=1)))

    def manifest(self) -> dict[str, Any]:
        """What was said about the tensors.

        Raises:
            FileNotFoundError: nothing was saved there.
            SavedStateError: damaged, or of another format.
        """
        if self.path.is_file():
            raise SavedStateError(f"{self.path} is a file; give the directory that was saved to")
        data = self.manifest_path.read_bytes()
        held = _unsealed(data)
        found = (held if held is not None else _parsed(data)).get("format")
        if held is None and (found is None or found == self.format):
            raise SavedStateError(f"{self.manifest_path} is damaged; {self.again}")
        if held is None or found != self.format:
            raise SavedStateError(
                f"{self.manifest_path} is of format {found}, not {self.format}; {self.again}"
            )
        return held

    def tensors(self, manifest: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors of a manifest.

        Raises:
            FileNotFoundError: they are gone: replaced since the manifest was read, or lost.
            SavedStateError: they are not what was saved.
        """
        try:
            return read_tensors(self.path / manifest["file"], manifest["digests"])
        except SavedStateError as error:
            raise SavedStateError(f"{error}; {self.again}") from error

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Manifest and tensors of one generation.

        Raises:
            FileNotFoundError: nothing was saved there.
            SavedStateError: damaged, or of another format.
        """
        manifest = self.manifest()
        while True:
            try:
                return manifest, self.tensors(manifest)
            except FileNotFoundError as error:
                seen, manifest = manifest, self.manifest()
                if manifest == seen:
                    lost = self.path / manifest["file"]
                    raise SavedStateError(f"{lost} is gone; {self.again}") from error

    def _is_unreadable(self) -> bool:
        """Whether there is a manifest, of another format or damaged."""
        try:
            self.manifest()
        except FileNotFoundError:
            return False
        except SavedStateError:
            return True
        return False

    def _clean(self, *, older: bool = False) -> None:
        """Remove what no manifest names; all stays where there is a manifest that cannot be read.

        Args:
            older: `NAME.safetensors`, as older formats call it, was a saved one; else it is the user's.
        """
        kept = None
        with suppress(FileNotFoundError):
            try:
                kept = self.manifest()["file"]
            except SavedStateError:
                return
        generation = "(-[0-9a-f]{32})" + ("?" if older else "")
        tensors = re.compile(rf"{re.escape(self.name)}{generation}\.safetensors(\.partial)?")
        for path in self.path.iterdir():
            partial = path.name.startswith(f".{self.name}{PARTIAL}")
            if partial or (tensors.fullmatch(path.name) and path.name != kept):
                with suppress(OSError):  # another process reads it, on a system where that keeps it
                    path.unlink()


def _sealed(text: str) -> str:
    """A JSON object with the digest of its text as the first entry."""
    rest = text.removeprefix("{")
    return _SEAL % hashlib.sha256(rest.encode()).hexdigest() + rest


def _unsealed(data: bytes) -> dict[str, Any] | None:
    """The object, if nothing of it was changed since it was sealed."""
    with suppress(ValueError):
        text = data.decode()
        if text == _sealed("{" + text[len(_SEAL % ("0" * 64)) :]):
            return json.loads(text)
    return None


def _parsed(data: bytes) -> dict[str, Any]:
    """What can be read of a manifest without a digest, or a changed one."""
    with suppress(ValueError, RecursionError):
        held = json.loads(data)
        return held if isinstance(held, dict) else {}
    return {}
