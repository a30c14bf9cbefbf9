"""Operations on the parts of a KV cache that matter: each has a torch reference and, on CPUs, native code."""

from keyhole.kernels.attention.columns import add_columns
from keyhole.kernels.attention.gather import gather_attention
from keyhole.kernels.attention.merge import merge_attention
from keyhole.kernels.attention.packed import packed_attention
from keyhole.kernels.attention.paged import paged_attention, paged_gather_attention
from keyhole.kernels.attention.pooled import pooled_attention
from keyhole.kernels.attention.prompt import prompt_attention, prompt_pays
from keyhole.kernels.attention.reference import Attended
from keyhole.kernels.attention.types import Codes, Layout, Pooled, Pooling, Span
from keyhole.kernels.backend.library import cpu_level, cpu_levels, describe, native_available
from keyhole.kernels.ffn.matvec import matvec_skip_columns, matvec_skip_rows, matvec_skips
from keyhole.kernels.lowrank.rebuild_keys import RotaryFrequencies, apply_rotary, rebuild_keys
from keyhole.kernels.pq.codes import allocate_codes, read_codes, write_codes
from keyhole.kernels.pq.encode import kmeans_assign, pq_encode
from keyhole.kernels.pq.scores import pq_scores
from keyhole.kernels.pq.select import pq_select
from keyhole.kernels.pq.types import Picked
from keyhole.kernels.ranking.drop_slots import drop_slots
from keyhole.kernels.ranking.exact_scores import exact_scores
from keyhole.kernels.ranking.noise import NOISES, Noise, head_words, query_words
from keyhole.kernels.ranking.page_slots import page_slots
from keyhole.kernels.ranking.top_slots import top_slots
from keyhole.kernels.ranking.types import Allowed, Paged
from keyhole.kernels.resident_rows.api import (
    read_rows,
    resident_append,
    resident_directory,
    resident_fill,
    resident_lookup,
)
from keyhole.kernels.resident_rows.reference import Extent, ResidentFound, ResidentState
from keyhole.kernels.sale.attention import sale_attention, sale_pays
from keyhole.kernels.sale.tiles import ROWS as TILE_ROWS
from keyhole.kernels.sale.tiles import Reach, SparseAttended

__all__ = [
    "NOISES",
    "TILE_ROWS",
    "Allowed",
    "Attended",
    "Codes",
    "Extent",
    "Layout",
    "Noise",
    "Paged",
    "Picked",
    "Pooled",
    "Pooling",
    "Reach",
    "ResidentFound",
    "ResidentState",
    "RotaryFrequencies",
    "Span",
    "SparseAttended",
    "add_columns",
    "allocate_codes",
    "apply_rotary",
    "cpu_level",
    "cpu_levels",
    "describe",
    "drop_slots",
    "exact_scores",
    "gather_attention",
    "head_words",
    "kmeans_assign",
    "matvec_skip_columns",
    "matvec_skip_rows",
    "matvec_skips",
    "merge_attention",
    "native_available",
    "packed_attention",
    "page_slots",
    "paged_attention",
    "paged_gather_attention",
    "pooled_attention",
    "pq_encode",
    "pq_scores",
    "pq_select",
    "prompt_attention",
    "prompt_pays",
    "query_words",
    "read_codes",
    "read_rows",
    "rebuild_keys",
    "resident_append",
    "resident_directory",
    "resident_fill",
    "resident_lookup",
    "sale_attention",
    "sale_pays",
    "top_slots",
    "write_codes",
]
