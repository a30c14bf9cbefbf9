"""Published systems as small recipes over the questions."""

from keyhole.methods.a2ats import A2ATS
from keyhole.methods.base import Method, RetrievalMethod
from keyhole.methods.chess import Chess
from keyhole.methods.clusterkv import ClusterKV
from keyhole.methods.compaction import Compaction
from keyhole.methods.criticalkv import CriticalKV
from keyhole.methods.delta import Delta
from keyhole.methods.dense import Dense
from keyhole.methods.eviction import EvictionMethod
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
from keyhole.methods.recipe import Recipe
from keyhole.methods.registry import METHODS, register
from keyhole.methods.retroinfer import RetroInfer
from keyhole.methods.sale import Sale
from keyhole.methods.shadowkv import ShadowKV
from keyhole.methods.snapkv import AdaKV, PyramidKV, SnapKV
from keyhole.methods.streamingllm import StreamingLLM
from keyhole.methods.tail import Tail
from keyhole.methods.tokenselect import TokenSelect
from keyhole.methods.tova import Tova
from keyhole.methods.windowkv import WindowKV
from keyhole.methods.wrapper import ScoreWrapper

__all__ = [
    "A2ATS",
    "H2O",
    "METHODS",
    "AdaKV",
    "Chess",
    "ClusterKV",
    "Compaction",
    "CriticalKV",
    "Delta",
    "Dense",
    "DoubleSparsity",
    "EvictionMethod",
    "ExpectedAttentionKV",
    "InfLLM",
    "InfLLMV2",
    "KNorm",
    "KeyDiff",
    "Keyformer",
    "Loki",
    "MPCache",
    "MagicPIG",
    "Method",
    "Nosa",
    "Oracle",
    "PQCache",
    "PyramidKV",
    "Quantised",
    "Quest",
    "Recipe",
    "RetrievalMethod",
    "RetroInfer",
    "Sale",
    "ScoreWrapper",
    "ShadowKV",
    "SnapKV",
    "StreamingLLM",
    "Tail",
    "TokenSelect",
    "Tova",
    "WindowKV",
    "register",
]
