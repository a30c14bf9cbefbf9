"""What Keyhole's attention backends have in common, on every platform."""

# pyright: reportMissingImports=false
from __future__ import annotations

from dataclasses import fields
from typing import Any

from vllm.config import get_current_vllm_config  # type: ignore[attr-defined]
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.vllm.config import Settings
from keyhole.engines.vllm.prepare import prepared
from keyhole.engines.vllm.spec import serving_spec


class ServingBackend:
    """Beside a backend of vLLM's: it is that backend, untouched, where an engine does not ask for Keyhole.

    One class does both, since vLLM remembers which backend it has chosen for sizes and types, whatever engine
    of a process asks.

    Attributes:
        impl, builder: what serves an engine that asks for Keyhole.
    """

    impl: type[Any]
    builder: type[Any]
    # vLLM asks for a layer's pages right after it made the layers, but does not say of which engine.
    _made: tuple[Any, Settings] | None = None

    @classmethod
    def get_impl_cls(cls) -> type[Any]:
        config = get_current_vllm_config()
        settings = prepared(config)
        ServingBackend._made = None if settings is None else (config, settings)
        return super().get_impl_cls() if ServingBackend._made is None else cls.impl  # type: ignore[misc]

    @classmethod
    def get_builder_cls(cls) -> type[Any]:
        return super().get_builder_cls() if ServingBackend._made is None else cls.builder  # type: ignore[misc]

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        spec = super().customize_spec(spec)  # type: ignore[misc]
        if ServingBackend._made is None:
            return spec
        config, settings = ServingBackend._made
        if type(spec) is SlidingWindowSpec and config.scheduler_config.disable_hybrid_kv_cache_manager:
            spec = _in_the_same_blocks(spec, settings)
        return serving_spec(spec, settings, config)


def _in_the_same_blocks(spec: Any, settings: Settings) -> Any:
    """The spec of a layer with a window, as vLLM makes it where all layers share one table of blocks.

    vLLM does so itself, but then knows the specs of layers that are served no more.

    Raises:
        UnsupportedModelError: blocks are given back, which layers with a window read.
    """
    if settings.mirrored:
        raise UnsupportedModelError(
            f"{settings.recipe} is served from keys and values of its own, and pages are given back, which "
            f"the layers of this model with a window of {spec.sliding_window} tokens read, as vLLM has one "
            "table of pages for all layers here; leave out offload, or give a method that keeps every token"
        )
    held = {
        field.name: getattr(spec, field.name)
        for field in fields(FullAttentionSpec)
        if hasattr(spec, field.name)
    }
    return FullAttentionSpec(**held)
