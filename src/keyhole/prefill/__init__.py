"""Compute: how attention over the prompt is computed."""

from keyhole.prefill.base import Prefill
from keyhole.prefill.biased import BiasedPrefill
from keyhole.prefill.chunked import ChunkedPrefill
from keyhole.prefill.dense import DensePrefill
from keyhole.prefill.sale import SalePrefill

__all__ = ["BiasedPrefill", "ChunkedPrefill", "DensePrefill", "Prefill", "SalePrefill"]
