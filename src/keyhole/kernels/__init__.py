"""Operations on the parts of a KV cache that matter: each has a torch reference and, on CPUs, native code."""

from keyhole.kernels.add_columns import add_columns
from keyhole.kernels.attention_reference import Attended
from keyhole.kernels.codes import allocate_codes, read_codes, write_codes
from keyhole.kernels.drop_slots import drop_slots
from keyhole.kernels.exact_scores import exact_scores
from keyhole.kernels.gather_attention import gather_attention
from keyhole.kernels.hot import hot_append, hot_directory, hot_fill, hot_lookup, read_rows
from keyhole.kernels.hot_reference import Extent, HotFound, HotState
from keyhole.kernels.int8_dot import int8_dot
from keyhole.kernels.library import cpu_level, cpu_levels, describe, native_available
from keyhole.kernels.merge_attention import merge_attention
from keyhole.kernels.noise import NOISES, Noise, head_words, query_words
from keyhole.kernels.packed_attention import Codes, Layout, packed_attention
from keyhole.kernels.page_slots import Allowed, Paged, page_slots
from keyhole.kernels.paged_attention import paged_gather_attention
from keyhole.kernels.pooled_attention import Pooled, Pooling, Span, pooled_attention
from keyhole.kernels.pq_encode import kmeans_assign, pq_encode
from keyhole.kernels.pq_scores import pq_scores
from keyhole.kernels.pq_select import pq_select
from keyhole.kernels.pq_select_reference import Picked
from keyhole.kernels.rebuild_keys import Turning, rebuild_keys, turned
from keyhole.kernels.sale_attention import sale_attention, sale_pays
from keyhole.kernels.sale_tiles import ROWS as TILE_ROWS
from keyhole.kernels.sale_tiles import Reach, SparseAttended
from keyhole.kernels.sparse_matvec import matvec_skip_columns, matvec_skip_rows, matvec_skips
from keyhole.kernels.top_slots import top_slots

__all__ = [
    "NOISES",
    "TILE_ROWS",
    "Allowed",
    "Attended",
    "Codes",
    "Extent",
    "HotFound",
    "HotState",
    "Layout",
    "Noise",
    "Paged",
    "Picked",
    "Pooled",
    "Pooling",
    "Reach",
    "Span",
    "SparseAttended",
    "Turning",
    "add_columns",
    "allocate_codes",
    "cpu_level",
    "cpu_levels",
    "describe",
    "drop_slots",
    "exact_scores",
    "gather_attention",
    "head_words",
    "hot_append",
    "hot_directory",
    "hot_fill",
    "hot_lookup",
    "int8_dot",
    "kmeans_assign",
    "matvec_skip_columns",
    "matvec_skip_rows",
    "matvec_skips",
    "merge_attention",
    "native_available",
    "packed_attention",
    "page_slots",
    "paged_gather_attention",
    "pooled_attention",
    "pq_encode",
    "pq_scores",
    "pq_select",
    "query_words",
    "read_codes",
    "read_rows",
    "rebuild_keys",
    "sale_attention",
    "sale_pays",
    "top_slots",
    "turned",
    "write_codes",
]
