"""The one list of methods: it drives the command line, the test matrix and the tables.

A package outside adds a method by an entry point of the group `keyhole.methods`, whose name is the method's:

    [project.entry-points."keyhole.methods"]
    mymethod = "mypackage.mymethod:MyMethod"

It is imported when the method is first asked for, or when methods are listed. A notebook calls
`keyhole.register(MyMethod)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from keyhole.core.errors import SpecError
from keyhole.methods.a2ats import A2ATS
from keyhole.methods.base import Method
from keyhole.methods.chess import Chess
from keyhole.methods.clusterkv import ClusterKV
from keyhole.methods.compaction import Compaction
from keyhole.methods.criticalkv import CriticalKV
from keyhole.methods.delta import Delta
from keyhole.methods.dense import Dense
from keyhole.methods.expectedattention import ExpectedAttentionKV
from keyhole.methods.h2o import H2O, Keyformer
from keyhole.methods.infllm import InfLLM
from keyhole.methods.infllm_v2 import InfLLMV2
from keyhole.methods.keydiff import KeyDiff
from keyhole.methods.knorm import KNorm
from keyhole.methods.loki import DoubleSparsity, Loki
from keyhole.methods.magicpig import MagicPIG
from keyhole.methods.mpcache import MPCache
from keyhole.methods.nosa import Nosa
from keyhole.methods.oracle import Oracle
from keyhole.methods.pqcache import PQCache
from keyhole.methods.quantised import Quantised
from keyhole.methods.quest import Quest
from keyhole.methods.retroinfer import RetroInfer
from keyhole.methods.sale import Sale
from keyhole.methods.shadowkv import ShadowKV
from keyhole.methods.snapkv import AdaKV, PyramidKV, SnapKV
from keyhole.methods.streamingllm import StreamingLLM
from keyhole.methods.tail import Tail
from keyhole.methods.tokenselect import TokenSelect
from keyhole.methods.tova import Tova
from keyhole.methods.windowkv import WindowKV

GROUP = "keyhole.methods"

_RETRIEVAL = (Oracle, PQCache, A2ATS, ShadowKV, Quest, TokenSelect, Delta, MPCache, InfLLM, InfLLMV2, Nosa)
_RETRIEVAL += (ClusterKV, RetroInfer, Loki, DoubleSparsity, MagicPIG)
_PREFILL = (Sale,)
_FEEDFORWARD = (Chess,)
_STORAGE = (Quantised,)
_BY_ATTENTION = (H2O, Keyformer, Tova, SnapKV, PyramidKV, AdaKV, WindowKV, ExpectedAttentionKV)
_EVICTION = (StreamingLLM, *_BY_ATTENTION, KNorm, KeyDiff)
_WRAPPERS = (CriticalKV, Compaction)
_BESIDE = (Tail,)


class Registry(Mapping[str, type[Method]]):
    """Methods by name: those that are built in or registered, then those of installed packages.

    A plug-in that cannot be used is named in a warning when methods are listed, and in an error when it is
    asked for; the others are not affected.
    """

    def __init__(self, methods: Iterable[type[Method]]) -> None:
        self._methods: dict[str, type[Method]] = {}
        self._points: dict[str, list[EntryPoint]] | None = None  # of plug-ins, by name, once looked for
        self._refused: dict[str, str] = {}  # plug-ins that cannot be used, and why
        for method in methods:
            self.register(method)

    def register(self, method: type[Method]) -> type[Method]:
        """Add a method under its name; may be used as a decorator.

        Raises:
            TypeError: not a frozen dataclass derived from Method, or a field of it is no option.
            ValueError: its name is taken by another method, or cannot be written in a specification.
        """
        check_method(method)
        taken = self._methods.get(method.name)
        if taken is not None and taken is not method:
            raise ValueError(f"{_path(method)}: {_path(taken)} is called {method.name!r} already; rename one")
        self._methods[method.name] = method
        return method

    def __getitem__(self, name: str) -> type[Method]:
        """The method of a name.

        Raises:
            KeyError: there is none.
            SpecError: a package outside offers one that cannot be used; the message says why.
        """
        if name not in self._methods and name in self._plugins():
            self._load(name)
            if name in self._refused:
                raise SpecError(self._refused[name])
        return self._methods[name]

    def __iter__(self) -> Iterator[str]:
        for name in self._plugins():
            known = set(self._refused)
            self._load(name)
            if name in self._refused.keys() - known:
                warnings.warn(self._refused[name], stacklevel=2)
        return iter(list(self._methods))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _plugins(self) -> dict[str, list[EntryPoint]]:
        if self._points is None:
            self._points = {}
            for point in entry_points(group=GROUP):
                self._points.setdefault(point.name, []).append(point)
        return self._points

    def _load(self, name: str) -> None:
        """Register the plug-in of that name, or note why it cannot be used."""
        if name in self._refused:
            return
        point, *others = self._plugins()[name]
        try:
            if others:
                raise ValueError(f"so do {', '.join(map(_origin, others))}; uninstall all but one")
            method = point.load()
            check_method(method)
            if method.name != name:
                raise ValueError(f"the method it loads is called {method.name!r}")
            self.register(method)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self._refused[name] = f"{_origin(point)} offers a method {name!r} that cannot be used; {reason}"


def check_method(method: Any) -> None:
    """Raise unless a class can be registered as a method, see `Registry.register`."""
    if not (isinstance(method, type) and issubclass(method, Method) and is_dataclass(method)):
        raise TypeError(f"{method!r} is not a frozen dataclass that derives from keyhole.Method")
    for attribute in ("name", "paper", "summary", "facts"):
        if not hasattr(method, attribute):
            raise TypeError(f"{_path(method)} has no {attribute!r}; see the methods of keyhole.methods")
    if not method.name.isidentifier():
        raise ValueError(f"{_path(method)}: the name {method.name!r} is not a word that could be written")
    method.options()


def register(method: type[Method]) -> type[Method]:
    """Add a method to this process, as `Registry.register` of METHODS; may be used as a decorator."""
    return METHODS.register(method)


def json_schema() -> dict[str, Any]:
    """A JSON schema of the options of every method: `$defs` has one for each, by name."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Options of Keyhole's methods",
        "$defs": {name: method.schema() for name, method in METHODS.items()},
    }


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _origin(point: EntryPoint) -> str:
    package = "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    return f"{package} ({point.value})"


METHODS = Registry(
    (Dense, *_RETRIEVAL, *_PREFILL, *_FEEDFORWARD, *_STORAGE, *_EVICTION, *_WRAPPERS, *_BESIDE)
)
