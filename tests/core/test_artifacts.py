"""What was fitted to a model is refused with its file's name where it cannot be what was fitted."""

import pytest
import torch

from keyhole.core.errors import SavedStateError
from keyhole.core.generations import Generations
from keyhole.core.model_info import ModelInfo
from keyhole.feedforward.file import read_activations, write_activations
from keyhole.feedforward.fit import GRID, Fitted, Rule
from keyhole.kernels import Reach
from keyhole.prefill.salefile import read_thresholds, write_thresholds
from keyhole.selection.quantisers.codebook import Codebook
from keyhole.selection.quantisers.codefile import read_codebooks, write_codebooks

NAN, INF = float("nan"), float("inf")


def book(points=(1, 2, 8, 4)):
    return Codebook.of(torch.randn(*points), torch.eye(4).expand(1, 2, 4, 4).contiguous())


def write(kind, folder, model="dtype float32; weights ab"):
    if kind == "codebooks":
        write_codebooks(folder, {0: book(), 1: book()}, model=model, distance=7)
    elif kind == "thresholds":
        taus = {0: torch.rand(4), 1: torch.rand(4)}
        write_thresholds(folder, taus, model=model, reach=Reach())
    else:
        fitted = {"mlp": Fitted(torch.ones(6), torch.linspace(0, 1, GRID + 1))}
        write_activations(folder, fitted, model=model, rule=Rule(), attention=True)


def read(kind, folder, info=None):
    info = info or ModelInfo.of(2)
    if kind == "codebooks":
        return read_codebooks(folder, info, 7)
    if kind == "thresholds":
        return read_thresholds(folder, info, Reach())
    return read_activations(folder, info, Rule(), True)


def rewrite(kind, folder, change):
    """Let somebody write other tensors, with digests of their own."""
    files = Generations(folder, kind, 2, "")
    manifest, tensors = files.read()
    change(tensors)
    files.write(
        tensors, {k: v for k, v in manifest.items() if k not in ("digest", "format", "file", "digests")}
    )


KINDS = ["codebooks", "thresholds", "activations"]
NUMBERS = {"codebooks": "0.points", "thresholds": "0", "activations": "mlp.quantiles"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_nan_and_infinity(kind, number, tmp_path):
    write(kind, tmp_path)
    assert read(kind, tmp_path)
    rewrite(kind, tmp_path, lambda tensors: tensors[NUMBERS[kind]].view(-1)[:1].fill_(number))
    with pytest.raises(SavedStateError, match=rf"{kind}-.*\.safetensors: .* NaN or infinity; calib"):
        read(kind, tmp_path)


def test_nan_is_not_written(tmp_path):
    with pytest.raises(SavedStateError, match="thresholds: 0 holds NaN"):
        write_thresholds(tmp_path, {0: torch.tensor([NAN])}, model="a", reach=Reach())
    assert not list(tmp_path.iterdir())


def put(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


CHANGES = {
    "codebooks": [
        put("0.points", torch.randn(2, 8, 4)),
        put("0.points", torch.randn(1, 2, 8, 5)),
        put("0.points", torch.randn(1, 2, 8, 4).double()),
        put("0.points", torch.randn(3, 2, 8, 4)),
        put("0.metric", torch.randn(1, 2, 4, 4)),
        put("0.metric", torch.zeros(1, 2, 4, 4)),
        put("x.points", torch.randn(1)),
        lambda tensors: tensors.pop("0.metric"),
    ],
    "thresholds": [
        put("0", torch.rand(2, 2)),
        put("0", torch.rand(3)),
        put("0", torch.rand(4).half()),
        put("0", -torch.rand(4)),
        put("x", torch.rand(4)),
    ],
    "activations": [
        put("mlp.weights", torch.rand(2, 3)),
        put("mlp.weights", -torch.rand(6)),
        put("mlp.quantiles", torch.linspace(0, 1, 7)),
        put("mlp.quantiles", torch.linspace(1, 0, GRID + 1)),
        lambda tensors: tensors.pop("mlp.weights"),
    ],
}


@pytest.mark.parametrize(("kind", "change"), [(kind, one) for kind, all_ in CHANGES.items() for one in all_])
def test_shapes_and_numbers_out_of_place(kind, change, tmp_path):
    write(kind, tmp_path)
    rewrite(kind, tmp_path, change)
    with pytest.raises(SavedStateError, match=rf"{kind}-.*\.safetensors does not hold .*; calibrate again"):
        read(kind, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_after_the_first_read_is_noticed(kind, tmp_path):
    write(kind, tmp_path)
    read(kind, tmp_path)
    file = next(tmp_path.glob(f"{kind}-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(SavedStateError, match=r"damaged.*calibrate again"):
        read(kind, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_another_model_is_told_by_what_differs(kind, tmp_path):
    write(kind, tmp_path)
    info = ModelInfo((0, 1), fingerprint=lambda: "dtype bfloat16; weights ab")
    with pytest.raises(SavedStateError, match=r"another model \(dtype float32, not dtype bfloat16\)"):
        read(kind, tmp_path, info)
