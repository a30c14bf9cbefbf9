"""The protocols of SPU that are served, and why the others are not."""

from __future__ import annotations

# pyright: reportMissingImports=false
from typing import NamedTuple

from spu import libspu

from keyhole.private.settings import SettingsError

_WHY_NOT = {
    "SECURENN": "its attention is off by 0.23 in SPU 0.9.5",
    "REF2K": "it computes in the clear, with one party",
    "SEMI2K": "its triples come from its first party by default, who could then open everything; those of a "
    "third party need a server that SPU 0.9.5's package does not have, and those of all parties together are "
    "an 'unsupported beaver type' there",
}


class Protocol(NamedTuple):
    """A protocol and the number of parties it is run with."""

    name: str
    parties: int


PROTOCOLS = {"aby3": Protocol("ABY3", 3), "cheetah": Protocol("CHEETAH", 2)}


def protocol_of(name: str) -> Protocol:
    """By its name in any case.

    Raises:
        SettingsError: it is not served, with the reason.
    """
    if name.lower() in PROTOCOLS:
        return PROTOCOLS[name.lower()]
    why = _WHY_NOT.get(name.upper(), "it is not known")
    raise SettingsError(f"protocol {name!r} is refused: {why}; give one of {', '.join(PROTOCOLS)}")


def config_of(protocol: Protocol, *, profile: bool = False, parallel: bool = False) -> libspu.RuntimeConfig:
    """SPU's settings.

    Args:
        profile: log bytes, messages and seconds of each operation.
        parallel: heads of a batched product at once, so that their messages overlap; the log then no longer
            says what each operation sent.
    """
    config = libspu.RuntimeConfig(getattr(libspu.ProtocolKind, protocol.name), libspu.FieldType.FM64, 18)
    config.enable_pphlo_profile = config.enable_hal_profile = profile
    config.experimental_enable_intra_op_par = parallel
    return config
