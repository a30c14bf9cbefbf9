"""Models with packed weights: equal to the model of the dequantised weights within the products' bound."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import keyhole
from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.engines.transformers.packed import (
    PackedEmbedding,
    PackedLinear,
    is_packed,
    pack_model,
    summary,
)
from keyhole.engines.transformers.packed.files import NAME, load_packed, save_packed
from keyhole.engines.transformers.projections import LayerProjections
from keyhole.kernels.products.matrix import Packing
from keyhole.kernels.products.packing import quantise
from tests.tiny import tiny_model

FAMILIES = ["llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "mistral", "qwen3_moe"]


def packed(family, form="int8", **options):
    model = copy.deepcopy(tiny_model(family, **options))
    pack_model(model, form)
    return model


def unpacked(model):
    """A copy with torch's modules over the numbers that packed ones stand for."""
    plain = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, (PackedLinear, PackedEmbedding)):
            weight = nn.Parameter(module.weight)
            if isinstance(module, PackedEmbedding):
                new = nn.Embedding(*weight.shape)
            else:
                new = nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None)
                if module.bias is not None:
                    new.bias = nn.Parameter(module.bias)
            new.weight = weight
            parent, _, own = name.rpartition(".")
            setattr(plain.get_submodule(parent), own, new)
    return plain.eval()


@torch.no_grad()
@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_exact_and_steps_within_rounding(family, form):
    model = packed(family, form)
    exact, ids = unpacked(model), torch.randint(1, 97, (2, 24))
    expected = exact(ids, use_cache=False).logits
    # More than 16 rows of a product are multiplied by torch.
    torch.testing.assert_close(model(ids, use_cache=False).logits, expected, rtol=1e-3, atol=1e-3)
    cache = model(ids[:, :-1], use_cache=True).past_key_values
    step = model(ids[:, -1:], past_key_values=cache).logits[:, -1]
    error = (step - expected[:, -1]).norm() / expected[:, -1].norm()
    assert 0 < float(error) < 0.1


def test_tied_weights_are_held_once():
    model = packed("llama", tie_word_embeddings=True)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, PackedEmbedding)
    assert head.codes.data_ptr() == embedding.codes.data_ptr()
    assert summary(model).modules == {"int8": 2 + 2 * 7}
    both = summary(packed("llama", tie_word_embeddings=False))
    assert both.packed_bytes - summary(model).packed_bytes == sum(
        part.nbytes for part in (embedding.codes, embedding.scales)
    )


def test_what_is_packed_stays_so_in_copies_and_other_dtypes():
    model = packed("qwen2", "int4")
    ids = torch.randint(1, 97, (1, 20))
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)
        narrow = copy.deepcopy(model).to(torch.bfloat16)
        layer = model.model.layers[0].self_attn.q_proj
        moved = narrow.model.layers[0].self_attn.q_proj
        assert torch.equal(moved.scales, layer.scales)
        assert torch.equal(moved.matrix.bias, layer.bias.bfloat16().float())
        assert narrow(ids).logits.dtype == torch.bfloat16
        error = (narrow(ids).logits.float() - model(ids).logits).norm() / model(ids).logits.norm()
    assert float(error) < 0.2


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_model_is_saved_and_loaded(tmp_path, tied):
    model, ids = packed("qwen2", "int4", tie_word_embeddings=tied), torch.randint(1, 97, (1, 20))
    save_packed(model, tmp_path)
    again = load_packed(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert fingerprint(again) == fingerprint(model)
    assert not again.training
    size = (tmp_path / NAME).stat().st_size
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[: size // 2])
    with pytest.raises(ValueError, match=r"packed\.safetensors' is damaged"):
        load_packed(tmp_path)


def test_other_weights_are_another_identity():
    plain = tiny_model("llama")
    found = {fingerprint(plain), fingerprint(packed("llama", "int8")), fingerprint(packed("llama", "int4"))}
    assert len(found) == 3
    changed = packed("llama", "int8")
    before = fingerprint(changed)
    changed.model.layers[0].mlp.up_proj.codes[0, 0, 0, 0, 0] += 1
    assert fingerprint(changed) != before


def test_projections_of_packed_models_are_those_of_their_numbers():
    model = packed("llama")
    attention = model.model.layers[1].self_attn
    expected = attention.o_proj.weight.T.unflatten(0, (model.config.num_attention_heads, -1))
    assert torch.equal(LayerProjections(model, 1).output(), expected)


def test_a_gradient_goes_through_to_the_input():
    linear = PackedLinear(quantise(torch.randn(24, 40), Packing.INT4_MIN, torch.randn(24)))
    x = torch.randn(3, 40, requires_grad=True)
    linear(x).sum().backward()
    torch.testing.assert_close(x.grad, linear.weight.sum(0).expand(3, 40))


@torch.no_grad()
@pytest.mark.parametrize("method", ["pqcache", "snapkv", "quest", "quantised"])
def test_methods_serve_packed_models(method):
    model, ids = packed("llama"), torch.randint(1, 97, (1, 60))
    with keyhole.attach(model, method):
        found = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert found.shape == (1, 64)


def test_chess_and_packing_twice_are_refused_with_a_reason():
    model = packed("llama")
    with pytest.raises(UnsupportedModelError, match="packed already"):
        pack_model(model, "int4")
    with (
        pytest.raises(UnsupportedModelError, match=r"PackedLinear.*leave `chess` out"),
        keyhole.attach(model, "chess"),
    ):
        model(torch.ones(1, 4, dtype=torch.long))
    bad = copy.deepcopy(tiny_model("llama"))
    bad.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match="not finite, or beyond 65504"):
        pack_model(bad, "int8")


def test_experts_stay_as_they_are():
    model = packed("qwen3_moe")
    assert is_packed(model.model.layers[0].self_attn)
    assert not is_packed(model.model.layers[0].mlp)


def test_adapters_are_not_packed():
    peft = pytest.importorskip("peft")
    model = copy.deepcopy(tiny_model("llama"))
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UnsupportedModelError, match=r"adapters.*merge_and_unload"):
        pack_model(model, "int8")


def spoil(directory, change):
    """Let `change` alter the tensors of a packed file, and what it says of them."""
    with safe_open(directory / NAME, framework="pt") as file:
        about = json.loads(file.metadata()["keyhole"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, about["modules"]["model.layers.0.mlp.up_proj"])
    save_file(tensors, directory / NAME, metadata={"keyhole": json.dumps(about)})


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    "change",
    [
        lambda _, said: said.update(shape=[6400, 48]),
        lambda _, said: said.update(shape=[64, 112]),
        lambda _, said: said.update(packing="INT4_MIN"),
        lambda tensors, _: tensors.update({f"{UP}.codes": tensors[f"{UP}.codes"][:1].clone()}),
        lambda tensors, _: tensors.update({f"{UP}.scales": tensors[f"{UP}.scales"].float()}),
        lambda tensors, _: tensors.update({f"{UP}.minima": tensors[f"{UP}.scales"].clone()}),
        lambda tensors, _: tensors.pop(f"{UP}.scales"),
    ],
    ids=["rows", "columns", "packing", "codes", "dtype", "minima", "no scales"],
)
def test_a_file_whose_parts_do_not_fit_is_refused(tmp_path, change):
    save_packed(packed("llama"), tmp_path)
    spoil(tmp_path, change)
    with pytest.raises(ValueError, match=r"up_proj"):
        load_packed(tmp_path)
