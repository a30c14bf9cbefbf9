"""The importance head: its formula, its file, its refusals."""

import re

import numpy as np
import pytest
import torch

from keyhole.core.errors import SavedStateError
from keyhole.core.model_info import ModelInfo
from keyhole.selection.importance import ImportanceHead, read_heads, write_heads
from tests import oracles_nosa as oracle


def _head(bias=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return ImportanceHead(draw(2, 10), draw(2), draw(2) if bias else None)


@pytest.mark.parametrize("bias", [False, True])
def test_importance_is_the_formula(bias):
    head, values = _head(bias), torch.randn(3, 2, 7, 5)
    expected = [
        oracle.importance(
            head.weight.double().numpy(),
            head.scale.double().numpy(),
            row.double().numpy(),
            head.bias.double().numpy() if bias else None,
        )
        for row in values
    ]
    np.testing.assert_allclose(head(values).numpy(), np.array(expected), rtol=1e-5, atol=1e-6)


def test_it_begins_without_importance_and_has_a_gradient():
    head = ImportanceHead.initial(2, 5, bias=True, generator=torch.Generator().manual_seed(0))
    values = torch.randn(1, 2, 7, 5)
    assert head.idle
    assert torch.equal(head(values), torch.zeros(1, 2, 7))
    scale = head.scale.clone().requires_grad_()
    head._replace(scale=scale)(values).sum().backward()
    assert scale.grad is not None
    assert scale.grad.gt(0).all()
    assert not _head().idle


def test_values_of_another_model_are_refused():
    with pytest.raises(ValueError, match="keyhole train --selection nosa"):
        _head()(torch.randn(1, 2, 7, 6))


def test_heads_come_back_from_their_file(tmp_path):
    heads = {3: _head(True, 1), 1: _head(False, 2)}
    write_heads(tmp_path, heads, model="this", steps=5)
    (file,) = tmp_path.glob("importance-*.safetensors")
    assert file.stat().st_size < 4096
    first, third = read_heads(tmp_path, ModelInfo((1, 3), fingerprint=lambda: "this"))
    for found, written in ((first, heads[1]), (third, heads[3])):
        for part, other in zip(found, written, strict=True):
            assert part is other is None or torch.equal(part, other)


def test_what_cannot_be_used_is_refused_with_the_command(tmp_path):
    with pytest.raises(SavedStateError, match="keyhole train --selection nosa"):
        read_heads(tmp_path, ModelInfo((0,)))
    write_heads(tmp_path, {0: _head()}, model="weights one")
    with pytest.raises(SavedStateError, match=re.escape("weights one, not weights two")) as refused:
        read_heads(tmp_path, ModelInfo((0,), fingerprint=lambda: "weights two"))
    assert "keyhole train --selection nosa" in str(refused.value)
    with pytest.raises(SavedStateError, match=re.escape("for layers [0], not for (0, 1)")):
        read_heads(tmp_path, ModelInfo((0, 1), fingerprint=lambda: "weights one"))


def test_blocks_are_those_it_was_trained_with(tmp_path):
    write_heads(tmp_path, {0: _head()}, model="m", rule={"block": 32, "stride": 16})
    assert read_heads(tmp_path, ModelInfo((0,)), block=32, stride=16)
    with pytest.raises(
        SavedStateError, match=re.escape("trained with block=32, not 64; give nosa(block=32)")
    ):
        read_heads(tmp_path, ModelInfo((0,)), block=64, stride=16)


@pytest.mark.parametrize(
    "head",
    [
        ImportanceHead(torch.zeros(2, 9), torch.zeros(2)),
        ImportanceHead(torch.zeros(2, 10), torch.zeros(3)),
        ImportanceHead(torch.zeros(2, 10), torch.zeros(2), torch.zeros(1)),
    ],
)
def test_shapes_no_head_has_are_refused(head, tmp_path):
    write_heads(tmp_path, {0: head}, model="m")
    with pytest.raises(SavedStateError, match="does not hold importance"):
        read_heads(tmp_path, ModelInfo((0,)))


def test_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        write_heads(tmp_path, {0: _head()._replace(scale=torch.full((2,), torch.nan))}, model="m")
