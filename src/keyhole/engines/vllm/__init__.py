"""vLLM, by its public registries: the same methods for every request that it serves.

vLLM finds `register` by the entry point `vllm.general_plugins`. It is served by Keyhole where
`additional_config={"keyhole": {"method": "quest(budget=0.1)"}}` asks for that, and by its own code elsewhere.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

_HERE = "keyhole.engines.vllm"


def register() -> None:
    """Make Keyhole known to this process of vLLM; calling it again changes nothing.

    Each of the backends is vLLM's own one where an engine's configuration does not ask for Keyhole. Where it
    does, those that Keyhole does not know refuse.
    """
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from keyhole.engines.vllm.manager import register_specs
    from keyhole.engines.vllm.others import register_others

    register_specs()
    register_backend(AttentionBackendEnum.CPU_ATTN, f"{_HERE}.cpu.CPUBackend")
    register_backend(AttentionBackendEnum.FLASH_ATTN, f"{_HERE}.cuda.CUDABackend")
    register_others()
