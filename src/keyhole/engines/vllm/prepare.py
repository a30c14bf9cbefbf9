"""An engine that asks for Keyhole is made ready for it, in each process that has its configuration."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.vllm.config import Settings, settings_of
from keyhole.engines.vllm.support import check_engine

CONNECTOR = "KeyholeConnector"
_MODULE = "keyhole.engines.vllm.connector"


def prepared(vllm_config: Any) -> Settings | None:
    """The settings, None where Keyhole is not asked for; with them the configuration has our connector.

    The connector tells the worker which requests a step serves. The user is not to name it: vLLM's scheduler
    and worker each call this by something of ours before they make connectors.

    Raises:
        SpecError: the settings cannot be read.
        UnsupportedModelError: the engine cannot be served, with the reason.
    """
    settings = settings_of(vllm_config)
    if settings is None or vllm_config is None:
        return None
    check_engine(vllm_config, settings.recipe)
    _use_connector(vllm_config)
    return settings


def _use_connector(vllm_config: Any) -> None:
    from vllm.config import KVTransferConfig  # type: ignore[attr-defined]

    held = vllm_config.kv_transfer_config
    if held is None:
        vllm_config.kv_transfer_config = KVTransferConfig(
            kv_connector=CONNECTOR, kv_connector_module_path=_MODULE, kv_role="kv_both"
        )
    elif held.kv_connector != CONNECTOR:
        raise UnsupportedModelError(
            f"Keyhole serves vLLM through a KV connector of its own, and {held.kv_connector} is configured; "
            "leave out --kv-transfer-config and --kv-offloading-size"
        )
