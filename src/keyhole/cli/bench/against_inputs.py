"""What `keyhole bench against` is given, checked before anything slow."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from keyhole.cli.console import stderr
from keyhole.cli.early import check_method
from keyhole.cli.inputs import read_text
from keyhole.cli.outputs import check_plot, check_writable
from keyhole.core.model_files import GGUF, find_model, with_weights

_OF_SHAPES = ("file_type", "layers")
_SHORTEST = 2  # tokens in a cache


def check(
    context: typer.Context,
    given: dict[str, str | None],
    methods: Sequence[str],
    files: dict[str, Path | None],
) -> None:
    """Raise ValueError for options that exclude each other, unknown methods, and files that cannot be.

    Args:
        given: `gguf`, `shape` and `weights` as they were given.
        files: what is to be written, by option.
    """
    if given["gguf"] is not None and given["shape"] is not None:
        raise ValueError("--gguf names a file and --shape writes one; give one of the two")
    for name in _OF_SHAPES if given["shape"] is None else ("text",):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            how = "only together with" if given["shape"] is None else "not together with"
            raise ValueError(f"--{name.replace('_', '-')} has an effect {how} --shape; change one of the two")
    for method in methods:
        check_method(method)
    for option, path in files.items():
        check_writable(path, option)
    check_plot(files["--plot"])
    with_weights(None, given["weights"])


def numbers(lengths: str | None) -> tuple[int, ...] | None:
    """Lengths from text; None stays.

    Raises:
        ValueError: not numbers separated by commas, or too small.
    """
    if lengths is None:
        return None
    try:
        found = tuple(int(each) for each in lengths.split(","))
    except ValueError as error:
        raise ValueError(
            f"--lengths {lengths!r} is not a list of numbers; give some like 512,2048"
        ) from error
    if min(found) < _SHORTEST:
        raise ValueError(f"--lengths {lengths}: {min(found)} is out of range; give at least {_SHORTEST}")
    return found


def installed(engines: Sequence[str]) -> tuple[str, ...]:
    """The engines whose packages are here; a line on stderr says which are left out.

    Raises:
        SpecError: there is no such engine or option.
    """
    from keyhole.bench.against.engines import missing

    reasons = {spec: missing(spec) for spec in dict.fromkeys(engines)}
    for reason in filter(None, reasons.values()):
        stderr().print(reason, highlight=False, markup=False)
    return tuple(spec for spec, reason in reasons.items() if reason is None)


def prompt_text(text: Path | None, shape: str | None) -> str | None:
    """The text of the prompt; None for random weights, which read random ids."""
    if shape is not None:
        return None
    if text is not None:
        return read_text(str(text))
    from keyhole.evaluation.texts import texts

    return "\n\n".join(each.text for each in texts())


def model_file(gguf: str | None, shape: str | None, file_type: str, layers: int) -> Path:
    """The file that all engines read; one of random weights is written where it is not there yet.

    Raises:
        ValueError: no such file, shape or type, or it cannot be written.
    """
    if shape is None:
        return given_file(gguf)
    if find_spec("gguf") is None:
        raise ValueError("--shape writes a GGUF file, which needs gguf; pip install 'keyhole[gguf]'")
    from keyhole.bench.against.shape_file import file_name, write_shape
    from keyhole.bench.shapes import cut, shape_named
    from keyhole.generation.gguf import models_directory

    taken = cut(shape_named(shape), layers)
    path = models_directory() / file_name(shape, taken, file_type)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shape(taken, file_type, path)
    return path


def given_file(gguf: str | None) -> Path:
    """The GGUF file of that name; ValueError if there is none."""
    found = find_model(gguf or "smollm2")
    if isinstance(found, Path) and found.suffix.lower() == GGUF:
        return found
    raise ValueError(f"--gguf {gguf!r} is not a GGUF file; give one, or smollm2")


def loading(weights: str | None) -> dict[str, Any]:
    """Options of `load_model`.

    Raises:
        ValueError: weights of a form that this version does not hold.
    """
    if weights is None:
        return {}
    from keyhole.generation.loading import load_model

    if "weights" not in inspect.signature(load_model).parameters:
        raise ValueError(f"--weights {weights!r}: this version holds weights in --dtype only; leave it out")
    return {"weights": weights}
