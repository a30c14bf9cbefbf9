"""At a full budget every exact method continues a real text as transformers does: a real model in float32."""

from dataclasses import replace

import pytest
import torch

import keyhole
from keyhole.core.model_files import find_model
from keyhole.evaluation.texts import text_named
from keyhole.generation import load_model
from tests.small import FULL_BUDGET

PROMPT, STEPS = 256, 200

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    try:
        find_model("smollm2")
    except ValueError as error:
        pytest.skip(str(error))
    loaded = load_model("smollm2", dtype=torch.float32)
    return loaded.model.to("cpu"), loaded.tokenizer


@pytest.fixture(scope="module")
def prompt(model):
    text = text_named("sqlite").text
    return model[1](text, return_tensors="pt").input_ids[:, :PROMPT]


@pytest.fixture(scope="module")
def theirs(model, prompt):
    return continued(model[0], prompt)


def continued(model, prompt):
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        min_new_tokens=STEPS,
        max_new_tokens=STEPS,
        do_sample=False,
    )[0, PROMPT:].tolist()


@pytest.mark.parametrize("name", FULL_BUDGET)
def test_200_greedy_tokens_are_transformers_own(name, model, prompt, theirs):
    method = FULL_BUDGET[name]
    if name.startswith("shadowkv"):
        method = replace(method, rank=192)  # of 3 KV heads of 64: nothing is lost
    with keyhole.attach(model[0], method):
        assert continued(model[0], prompt) == theirs
