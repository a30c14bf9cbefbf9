"""Keyhole in a worker of vLLM: the requests of its layers.

Legend: T tokens of a step, H query heads, Hkv KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from keyhole.attention import Logits
from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.vllm.announcer import Step
from keyhole.engines.vllm.metadata import Batch, matched
from keyhole.engines.vllm.model import layers_of, model_info
from keyhole.engines.vllm.prepare import prepared
from keyhole.engines.vllm.requests import ServedRequests
from keyhole.engines.vllm.rows import Row
from keyhole.engines.vllm.usage import RequestUsage
from keyhole.storage import Pages, into_huge_pages


class Server:
    """The served layers of one worker, which share one table of blocks.

    Args:
        groups: vLLM's groups of layers; layers of a group share block tables.

    Attributes:
        requests: what is held for each request; there is nothing before the layers have pages.
    """

    requests: ServedRequests

    def __init__(self, vllm_config: Any, groups: Sequence[Any]) -> None:
        self._config, self._groups = vllm_config, groups
        self._group = 0  # the one whose layers are served
        self._layers: dict[str, tuple[int, Pages]] = {}
        self._step: Step | None = None
        self._begun = False

    def use_pages(self, kv_caches: dict[str, Tensor]) -> None:
        """Serve the layers whose pages these are, of those that are Keyhole's.

        Raises:
            UnsupportedModelError: they are in several groups, or the method needs what vLLM does not show.
        """
        settings = prepared(self._config)
        assert settings is not None
        layers = {name: impl for name, impl in layers_of(self._config).items() if name in kv_caches}
        self._group = self._only_group(layers)
        for place, (name, impl) in enumerate(layers.items()):
            # A step reads rows that are scattered over the pool.
            into_huge_pages(kv_caches[name])
            self._layers[name] = place, impl.pages(kv_caches[name], impl.head_size)
        info = model_info(self._config, settings.recipe, list(layers))
        self.requests = ServedRequests(settings.recipe, info, mirrored=settings.mirrored)

    def _only_group(self, layers: Collection[str]) -> int:
        holding = [place for place, group in enumerate(self._groups) if set(group.layer_names) & set(layers)]
        if len(holding) != 1:
            raise UnsupportedModelError(
                f"vLLM puts the {len(layers)} layers that attend to everything into {len(holding)} groups of "
                "pages, and Keyhole serves models with one such group"
            )
        return holding[0]

    def expect(self, step: Step) -> None:
        """Layers are about to be called for this step; for none, if it has no tokens."""
        self._step, self._begun = step, False

    @torch.no_grad()
    def attend(
        self, name: str, query: Tensor, key: Tensor, value: Tensor, out: Tensor, batch: Batch, logits: Logits
    ) -> None:
        """Attention of a layer for `query [T, H, D]`, `key` and `value [T, Hkv, D]`, into `out [T, H, D]`."""
        if self._step is None:  # vLLM measures itself
            out.zero_()
            return
        if not self._begun:
            size = self._groups[self._group].kv_cache_spec.block_size
            self._begin(matched(self._step, batch, self._group, size))
        place, pages = self._layers[name]
        self.requests.attend(place, query, key, value, pages, logits, out)

    def finish(self) -> None:
        """The step's layers have been called."""
        if self._step is not None and not self._begun:
            self._begin([])
        self._step = None

    def take_usage(self) -> dict[str, RequestUsage]:
        """Totals of the requests that had a step since this was last asked."""
        return self.requests.take_usage()

    def _begin(self, rows: Sequence[Row]) -> None:
        assert self._step is not None
        self.requests.begin_step(rows, self._step.gone)
        self._begun = True
