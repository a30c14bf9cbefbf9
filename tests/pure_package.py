"""Run by `make pure` on a package that was built without a compiler: everything works, by torch."""

from pathlib import Path

import torch

import keyhole
from keyhole import kernels
from keyhole.attention import Logits

home = Path(keyhole.__file__).parent
assert "pure" in home.parts, f"{home} is not the package that was built without a compiler"
assert not list(home.rglob("*.so")), "a package without native code holds a library"
assert not kernels.native_available(), kernels.describe()

layer = keyhole.Recipe.parse("pqcache(budget=64)").layers(1)[0]
layer.append(torch.randn(1, 2, 1000, 64), torch.randn(1, 2, 1000, 64))
out = layer.attend(torch.randn(1, 4, 1, 64), Logits(0.125))
assert out.isfinite().all()
assert layer.usage.read == 64 + 32 + 64, layer.usage
print(f"{home.name}: {kernels.describe()}; a step read {layer.usage.read:.0f} of 1000 tokens")
