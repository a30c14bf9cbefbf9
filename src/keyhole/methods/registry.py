"""The one list of methods: it drives the command line, the test matrix and the tables."""

from __future__ import annotations

from keyhole.methods.a2ats import A2ATS
from keyhole.methods.base import Method
from keyhole.methods.chess import Chess
from keyhole.methods.delta import Delta
from keyhole.methods.dense import Dense
from keyhole.methods.h2o import H2O, Keyformer
from keyhole.methods.mpcache import MPCache
from keyhole.methods.oracle import Oracle
from keyhole.methods.pqcache import PQCache
from keyhole.methods.quest import Quest
from keyhole.methods.sale import Sale
from keyhole.methods.shadowkv import ShadowKV
from keyhole.methods.snapkv import AdaKV, PyramidKV, SnapKV
from keyhole.methods.streamingllm import StreamingLLM
from keyhole.methods.tokenselect import TokenSelect
from keyhole.methods.windowkv import WindowKV

_RETRIEVAL = (Oracle, PQCache, A2ATS, ShadowKV, Quest, TokenSelect, Delta, MPCache)
_PREFILL = (Sale,)
_FEEDFORWARD = (Chess,)
_EVICTION = (StreamingLLM, H2O, Keyformer, SnapKV, PyramidKV, AdaKV, WindowKV)

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Dense, *_RETRIEVAL, *_PREFILL, *_FEEDFORWARD, *_EVICTION)
}
