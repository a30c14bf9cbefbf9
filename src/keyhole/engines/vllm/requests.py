"""The requests that an engine serves at a time, each in layer caches of its own; imports nothing of vLLM.

Legend: H query heads, Hkv KV heads, T tokens of a step, D head size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from keyhole.attention import Logits
from keyhole.core.errors import NonFiniteError
from keyhole.core.model_info import ModelInfo
from keyhole.core.scales import all_finite
from keyhole.engines.vllm.rows import Row
from keyhole.engines.vllm.served import Fresh, ServedRequest
from keyhole.engines.vllm.together import Together
from keyhole.engines.vllm.usage import RequestUsage, usage_of
from keyhole.methods.recipe import Recipe
from keyhole.storage import DeviceStorage, Footprint, Pages

_LOG = logging.getLogger(__name__)


def must_mirror(recipe: Recipe, info: ModelInfo | int) -> bool:
    """Whether a method has keys and values of its own beside an engine's pages: it drops tokens, or stores
    them in another place or form.
    """
    return recipe.drops or any(type(layer.storage) is not DeviceStorage for layer in recipe.layers(info))


class ServedRequests:
    """What each request of an engine holds, and attention over it, step by step and layer by layer.

    What a request is answered depends on its own tokens alone: not on the pieces in which its prompt comes,
    on the requests beside it, on prefixes that others computed, or on how often it was preempted. Methods
    that compute prompts sparsely are the exception where a piece ends within a chunk of theirs.

    A request whose keys or values hold NaN or infinity fails: from there on its outputs are NaN, and nothing
    of it is stored or counted. The others of the step go on.

    Args:
        info: of the layers that are served, in order.
        mirrored: the layer caches hold keys and values themselves, so that an engine may give pages back;
            else they are read in its pages.

    Attributes:
        failed: the reason, by request.
    """

    def __init__(self, recipe: Recipe, info: ModelInfo | int, *, mirrored: bool) -> None:
        if must_mirror(recipe, info) and not mirrored:
            raise ValueError(
                f"{recipe} has keys and values of its own beside the engine's pages; serve it mirrored"
            )
        self.recipe, self.info, self.mirrored = recipe, info, mirrored
        self.failed: dict[str, str] = {}
        self._served: dict[str, ServedRequest] = {}
        self._step: list[tuple[Row, ServedRequest]] = []
        self._usage: dict[str, RequestUsage] = {}
        self._counted = True
        self._tables: dict[tuple[str, ...], Together] = {}

    def __len__(self) -> int:
        return len(self._served)

    def begin_step(self, rows: Sequence[Row], gone: Iterable[str]) -> None:
        """A step of the engine brings `rows`, to all layers in turn.

        Args:
            gone: requests that are finished or were preempted, of which nothing is kept.

        Raises:
            ValueError: a row does not follow what came of its request before, or begins behind its prompt.
        """
        self._count()
        for request in gone:
            self._forget(request)
        self._step = [(row, self._request(row)) for row in rows]
        self._counted = False
        self._tables = {}
        for row, served in self._step:
            served.begin(row)

    def _forget(self, request: str) -> None:
        served = self._served.pop(request, None)
        self.failed.pop(request, None)
        if served is not None and _LOG.isEnabledFor(logging.INFO):
            usage, held = served.usage(), sum(served.footprint)
            told = "request %s is gone: %d steps read %.1f%% of their context; %.1f MiB beside the pages"
            _LOG.info(told, request, usage.steps, 100 * usage.share, held / 2**20)

    def _request(self, row: Row) -> ServedRequest:
        """That of a row, begun anew where the row is not behind what there is."""
        served = self._served.get(row.request)
        if served is None or row.begin < served.end:
            if row.begin >= row.prompt:
                raise ValueError(
                    f"request {row.request} begins at token {row.begin}, behind its prompt of {row.prompt} "
                    "tokens: generated tokens are not to be taken from a prefix cache"
                )
            served = ServedRequest(self.recipe.layers(self.info), mirrored=self.mirrored)
            self._served[row.request] = served
            self.failed.pop(row.request, None)
        elif row.begin > served.end:
            raise ValueError(
                f"request {row.request} has {served.end} tokens, and a step brings those from {row.begin} "
                "on: the engine and its method are out of step"
            )
        return served

    def _count(self) -> None:
        """Note what the requests of the step that is over did."""
        for row, served in self._step if not self._counted else ():
            if not served.failed:
                served.weigh(row)
                self._usage[row.request] = served.usage()
        self._counted = True

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, pages: Pages, logits: Logits, out: Tensor
    ) -> None:
        """Attention of the step's tokens in a layer, over all that their requests hold and the method reads.

        Args:
            layer: place among the layers that are served.
            query: `[T, H, D]`, after RoPE; what no row names is passed over.
            key: `[T, Hkv, D]`, after RoPE, already in the pages, as `value [T, Hkv, Dv]`.
            out: `[T, H, Dv]`, is written to.
        """
        fresh = Fresh(query, key, value)
        self._fail_rows(layer, fresh)
        whole = []
        for row, served in self._step:
            if served.reads_all(layer, row, pages):
                whole.append(row)
            else:
                own = fresh.of(row.start, row.start + row.count)
                out[row.start : row.start + row.count] = self._attend(layer, row, served, own, pages, logits)
        if whole:
            self._together(whole, pages).attend(query, pages, logits, out)

    def _attend(
        self, layer: int, row: Row, served: ServedRequest, fresh: Fresh, pages: Pages, logits: Logits
    ) -> Tensor:
        if not served.failed:
            try:
                return served.attend(layer, row, fresh, pages, logits)
            except NonFiniteError as error:
                self._fail(row, served, f"layer {layer}: {error}")
        return fresh.query.new_full((*fresh.query.shape[:2], fresh.value.shape[2]), torch.nan)

    def _together(self, rows: list[Row], pages: Pages) -> Together:
        """Those rows, which are mostly the same in all layers of a step."""
        asked = tuple(row.request for row in rows)
        if asked not in self._tables:
            self._tables[asked] = Together.of(rows, pages.keys.shape[1])
        return self._tables[asked]

    def _fail_rows(self, layer: int, fresh: Fresh) -> None:
        """In pages nothing is appended that would be looked at: look at all rows at once."""
        if self.mirrored or (all_finite(fresh.key) and all_finite(fresh.value)):
            return
        for row, served in self._step:
            own = fresh.of(row.start, row.start + row.count)
            if not served.failed and not (all_finite(own.key) and all_finite(own.value)):
                reason = f"keys or values of tokens from {row.begin} on hold NaN or infinity"
                self._fail(row, served, f"layer {layer}: {reason}")

    def _fail(self, row: Row, served: ServedRequest, reason: str) -> None:
        served.failed = self.failed[row.request] = reason
        _LOG.error("request %s has no answer from here on, its outputs are NaN: %s", row.request, reason)

    def usage(self, request: str) -> RequestUsage:
        """What the steps of a request have read so far, and what it holds now.

        Raises:
            KeyError: no such request is being served.
        """
        served = self._served[request]
        return usage_of(served.layers, served.footprint)

    def take_usage(self) -> dict[str, RequestUsage]:
        """Totals of the requests that had a step since this was last asked, those too that are gone.

        To be asked between steps.
        """
        self._count()
        taken, self._usage = self._usage, {}
        return taken

    @property
    def footprint(self) -> Footprint:
        """Bytes that all requests hold beside the engine's pages."""
        return sum((served.footprint for served in self._served.values()), Footprint())
