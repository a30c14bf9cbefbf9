"""vLLM's backends that Keyhole cannot replace, by name.

Each is vLLM's own, but refuses an engine that asks for Keyhole, which would else be served without it.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from functools import cache
from typing import Any

from vllm.config import get_current_vllm_config_or_none  # type: ignore[attr-defined]
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.vllm.prepare import prepared

_NEEDLESS = ("NO_ATTENTION", "TORCH_SDPA", "CUSTOM")  # layers and encoders that are vLLM's whatever is asked


def register_others() -> None:
    """Register all backends that neither Keyhole nor another plug-in has replaced."""
    for member in AttentionBackendEnum:
        if member.value and member.name not in _NEEDLESS and not member.is_overridden():
            register_backend(member, f"{__name__}.{member.name}")


def __getattr__(name: str) -> type:
    if name not in AttentionBackendEnum.__members__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _refusing(name)


class _Refusing:
    """Beside a backend of vLLM's."""

    @classmethod
    def get_impl_cls(cls) -> Any:
        if prepared(get_current_vllm_config_or_none()) is not None:
            raise UnsupportedModelError(
                f"Keyhole cannot serve layers of vLLM's attention backend {cls.__name__}; give "
                "--attention-backend FLASH_ATTN on a GPU, or a model that needs no other"
            )
        return super().get_impl_cls()  # type: ignore[misc]


@cache
def _refusing(name: str) -> type:
    own = resolve_obj_by_qualname(AttentionBackendEnum[name].value)
    return type(name, (_Refusing, own), {"__module__": __name__, "__qualname__": name})
