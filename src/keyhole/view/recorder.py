"""Records what a request reads while it is answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keyhole.cache.listening import LayerRead
from keyhole.cache.request import Request
from keyhole.engines.transformers import KeyholeCache, served_layers
from keyhole.engines.transformers.cache import is_served, request_of
from keyhole.generation.decoding import Token
from keyhole.generation.prompt import Asked
from keyhole.storage import Footprint
from keyhole.view.coding import encode_set
from keyhole.view.reads import Reads, reads_of
from keyhole.view.record import Record, Step
from keyhole.view.spelling import as_units, decoded, spell

LIMIT = 32_768  # positions up to which a record has single tokens
_BEST, _ABSENT = 64, 32  # positions whose shares of attention are kept


@dataclass
class _Call:
    """One call of the model, as far as its layers have answered."""

    length: int
    queries: int
    layers: dict[int, Reads] = field(default_factory=dict)
    selective: bool = False
    cached: dict[int, float] = field(default_factory=dict)


class Recorder:
    """Makes a record of each answer; give it to `keyhole.generate` or `Library.ask` as `recorder`.

    Recording changes no token. It takes time beside every step, and with `exact` as much as scoring every key
    that is held.

    Args:
        exact: also compute what share of attention was missed, and which tokens had most of it.
        row: of the batch.
        limit: positions up to which single tokens are recorded; longer prompts in blocks of 2, 4, 8...

    Attributes:
        records: one for each answer, in order.
    """

    def __init__(self, *, exact: bool = False, row: int = 0, limit: int = LIMIT) -> None:
        if limit < 1:
            raise ValueError(f"limit {limit} is out of range; give at least 1 position")
        self.exact, self.row, self.limit = exact, row, limit
        self.records: list[Record] = []
        self._request: Request | None = None

    def begin(self, cache: KeyholeCache, tokenizer: Any, prompt: Asked, question: str) -> None:
        """An answer begins; from here on the layers of its cache are listened to."""
        self._cache, self._tokenizer, self._prompt, self._question = cache, tokenizer, prompt, question
        self._block = 1
        while prompt.length > self._block * self.limit:
            self._block *= 2
        self._call: _Call | None = None
        self._steps: list[Step] = []
        self._tokens: list[int] = []
        self._lookups = {layer.place: layer.storage.lookups for layer in served_layers(cache)}
        self._request = request_of(cache)
        if self._request is not None:
            self._request.listener = self._hear

    def generated(self, token: Token) -> None:
        """The call that was heard last gave this token."""
        self._tokens.append(token.id)
        if self._call is not None:
            self._steps.append(self._step(self._call, self._prompt.length + len(self._tokens) - 1))
        self._call = None

    def end(self) -> None:
        """The answer is over, whole or interrupted; it is recorded where any step of it was heard."""
        try:
            if self._steps:
                self.records.append(self._record())
        finally:
            self.drop()

    def drop(self) -> None:
        """The answer is over, and not recorded."""
        if self._request is not None:
            self._request.listener = None
        self._request = self._call = None
        self._steps = []

    def _hear(self, event: LayerRead) -> None:
        length, queries = event.layer.length, event.query.shape[2]
        call = self._call
        if call is None or call.length != length:
            if call is not None and call.selective:
                self._steps.append(self._step(call, None))
            call = self._call = _Call(length, queries)
        place = event.layer.place
        read = reads_of(event, self.row, exact=self.exact)
        # Layers that share keys and values with others are heard under the name of those.
        call.layers[place] = call.layers[place].and_also(read) if place in call.layers else read
        call.selective |= event.read is not None
        call.cached[place] = self._cached(event)

    def _cached(self, event: LayerRead) -> float:
        """The share of reads since the last step that a block cache answered."""
        now, before = event.layer.storage.lookups, self._lookups[event.layer.place]
        self._lookups[event.layer.place] = now
        hits, misses = now.hits - before.hits, now.misses - before.misses
        return hits / (hits + misses) if hits + misses > 0 else 0.0

    def _step(self, call: _Call, token: int | None) -> Step:
        layers = [call.layers[place] for place in sorted(call.layers)]
        sets = [positions for layer in layers for positions in layer.positions]
        exact = [layer.exact for layer in layers if layer.exact is not None]
        best, absent = _strongest(layers, call.length) if self.exact else ((), ())
        return Step(
            first=call.length - call.queries,
            queries=call.queries,
            token=token,
            sets=tuple(encode_set(_members([one // self._block], call.length)) for one in sets),
            union=encode_set(_members(sets, call.length)),
            counts=np.stack([layer.counts for layer in layers]).astype(np.uint32),
            held=np.stack([layer.held for layer in layers]).astype(np.uint32),
            missed=np.stack([layer.missed for layer in layers]),
            exact=np.stack(exact) if exact else None,
            nbytes=np.array([layer.nbytes for layer in layers]),
            cached=np.array([call.cached[place] for place in sorted(call.layers)], np.float32),
            best=best,
            absent=absent,
        )

    def _record(self) -> Record:
        prompt, layers = self._prompt, served_layers(self._cache)
        written = prompt.written
        ids = [*prompt.context[0].tolist(), *prompt.question[0].tolist()]
        text, spans = spell(self._tokenizer, ids, None if written is None else written.text)
        more, behind = decoded(self._tokenizer, self._tokens)
        spans = np.maximum.accumulate(np.concatenate([spans, behind + len(text)]), axis=0)
        text += more
        begin, stop = (0, len(text) - len(more)) if written is None else written.document
        readings = [layer.reading for layer in layers if layer.reading is not None]
        model = self._cache.model
        return Record(
            model=str(model.name_or_path or type(model).__name__).rstrip("/").rsplit("/", 1)[-1],
            method=self._cache.method,
            question=self._question,
            text=text,
            spans=as_units(text, spans),
            prompt=prompt.length,
            document=tuple(as_units(text, np.array([begin, stop])).tolist()),
            layers=tuple(n for n, layer in enumerate(self._cache.layers) if is_served(layer)),
            heads=len(layers[0].newest[0]) if layers else 0,
            block=self._block,
            sinks=max((reading.sinks for reading in readings), default=0),
            window=max((reading.window for reading in readings), default=0),
            tiers=tuple(_tier(layer.storage.footprint) for layer in layers),
            steps=tuple(self._steps),
        )


def _members(several: list[np.ndarray], stop: int) -> np.ndarray:
    """What is in any of several lists of positions below `stop`, ascending and each once."""
    there = np.zeros(stop, bool)
    for positions in several:
        there[positions] = True
    return np.flatnonzero(there)


def _tier(held: Footprint) -> str:
    """The slowest tier that holds keys and values."""
    return "disk" if held.disk else "host" if held.host else "device"


def _strongest(layers: list[Reads], length: int) -> tuple[tuple[tuple[int, float], ...], ...]:
    """Positions with the most attention, mean over layers and heads, where it was read and where not."""
    read, absent, heads = np.zeros(length), np.zeros(length), 0
    for layer in layers:
        assert layer.attention is not None
        for shares, places, positions in zip(*layer.attention, layer.positions, strict=True):
            there = places >= 0
            every = np.zeros(length)
            every[places[there]] = shares[there]
            read[positions] += every[positions]
            every[positions] = 0
            absent += every
            heads += 1
    return _top(read / heads, _BEST), _top(absent / heads, _ABSENT)


def _top(shares: np.ndarray, most: int) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-shares, kind="stable")[:most]
    return tuple((int(at), float(shares[at])) for at in order if shares[at] > 0)
