"""Selections of one native call against those of the general path."""

from __future__ import annotations

import pytest
import torch

from keyhole import kernels
from keyhole.selection.boxes import BoxSelector
from keyhole.selection.product import ProductSelector
from tests.layers import Layer

pytestmark = pytest.mark.skipif(not kernels.native_available(), reason="the native library is not built")

BOXES = ["quest(budget=0.2, page=4)", "quest(budget=40, page=8, box_dtype=auto)"]


@pytest.fixture
def steps(monkeypatch):
    """Each selection of boxes and product quantisers, beside that of the general path."""
    pairs = []

    def watched(selector, fast, general):
        once = getattr(selector, fast)

        def both(self, step):
            found = once(self, step)
            if found is not None:
                pairs.append((found, getattr(self, general)(step)))
            return found

        monkeypatch.setattr(selector, fast, both)

    watched(BoxSelector, "_estimated_at_once", "_estimated")
    watched(ProductSelector, "_selected_at_once", "_selected")
    return pairs


def run(spec, **options):
    layer = Layer(spec, **options)
    layer.append(230)
    layer.attend(230)
    for _ in range(4):
        layer.step()


@pytest.mark.parametrize("spec", BOXES)
@pytest.mark.parametrize("options", [{}, {"batch": 2, "padding": [0, 70]}], ids=str)
def test_boxes_rank_alike(steps, spec, options):
    run(spec, **options)
    assert len(steps) >= 4
    for found, expected in steps:
        for one, other in zip(found[:3], expected[:3], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("rotate", ["true", "false"])
@pytest.mark.parametrize("options", [{}, {"batch": 2, "padding": [0, 70]}], ids=str)
def test_codes_pick_alike(steps, rotate, options):
    run(f"pqcache(budget=40, rotate={rotate})", **options)
    assert len(steps) >= 4
    for found, expected in steps:
        assert torch.equal(found.counts, expected.counts)
        torch.testing.assert_close(found.mass, expected.mass, rtol=1e-3, atol=1e-4)
        # Rounding may swap the last of two that rank nearly alike.
        for row, other in zip(found.slots.flatten(0, 1), expected.slots.flatten(0, 1), strict=True):
            assert len(set(row.tolist()) ^ set(other.tolist())) <= 2
