"""Importing Keyhole changes nothing outside it."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import keyhole

_CHECK = """
import logging, sys, warnings
import torch, transformers
from transformers import cache_utils, masking_utils, modeling_utils

def world():
    return {
        "attention": dict(modeling_utils.ALL_ATTENTION_FUNCTIONS.items()),
        "masks": dict(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS.items()),
        "dynamic layers": dict(cache_utils.DYNAMIC_LAYER_TYPE_MAPPING),
        "static layers": dict(cache_utils.STATIC_LAYER_TYPE_MAPPING),
        "generate": transformers.GenerationMixin.generate,
        "update": transformers.DynamicCache.update,
        "sdpa": torch.nn.functional.scaled_dot_product_attention,
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "random": torch.get_rng_state().tolist(),
        "filters": list(warnings.filters),
        "handlers": list(logging.getLogger().handlers),
        "hook": sys.excepthook,
    }

before = world()
import keyhole
for name in keyhole.__all__:
    getattr(keyhole, name)
after = world()
changed = [key for key in before if before[key] != after[key]]
assert not changed, changed
"""


def test_importing_changes_nothing_global():
    run = subprocess.run([sys.executable, "-c", _CHECK], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_no_module_hides_a_public_name():
    """Importing `keyhole.x` sets the attribute x of the package, whatever the package meant by it."""
    modules = {module.name for module in pkgutil.iter_modules(keyhole.__path__)}
    assert not modules & set(keyhole.__all__)


_LIGHT = "import sys, keyhole; assert not {'torch', 'transformers'} & set(sys.modules), 'heavy'"


def test_importing_is_light():
    run = subprocess.run([sys.executable, "-c", _LIGHT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_public_names_are_those_that_are_shown():
    assert set(dir(keyhole)) == {*keyhole.__all__, "__version__"}
    assert all(getattr(keyhole, name) is not None for name in keyhole.__all__)
    assert {"attach", "KeyholeCache", "Usage", "Footprint", "Selector"} <= set(keyhole.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        keyhole.nothing  # noqa: B018


def test_type_checkers_are_told_of_the_types():
    assert (Path(keyhole.__file__).parent / "py.typed").exists()
