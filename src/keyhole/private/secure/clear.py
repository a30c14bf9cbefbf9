"""The same programs in the clear, with JAX alone: what secure computation is compared with."""

from __future__ import annotations

import numpy as np

from keyhole.private import sizes
from keyhole.private.files import Run
from keyhole.private.secure import programs

_CACHED = ("k", "v", "fine", "coarse")


def answer(run: Run, weights: dict[str, np.ndarray], tokens: np.ndarray, new: int) -> list[int]:
    """Greedy tokens after a prompt, computed in float32."""
    shape, settings, made = run.shape, run.settings, []
    caches: list[programs.Named] = [{} for _ in range(shape.layers)]
    for step in [None, *sizes.steps(settings, len(tokens), new - 1)]:
        marks = (tokens[:, None] == np.arange(shape.vocabulary)).astype(np.int32)
        ends = {f"w.{name}": value for name, value in weights.items()}
        passed = programs.embed({"tokens": marks, **ends}, shape, 0 if step is None else step.position)
        for layer in range(shape.layers):
            own = {
                f"w.{name.removeprefix(f'{layer}.')}": value
                for name, value in weights.items()
                if name.startswith(f"{layer}.")
            }
            given, leads = {**passed, **own, **caches[layer]}, settings.leads(layer)
            if step is None:
                out = programs.prompt_layer(given, shape, settings, leads)
            else:
                out = programs.step_layer(given, shape, settings, leads, step)
            caches[layer] = {name: value for name, value in out.items() if name in _CACHED}
            passed |= {name: value for name, value in out.items() if name not in _CACHED}
        made.append(int(programs.head({**passed, **ends}, shape)["token"][0]))
        tokens = np.array(made[-1:])
    return made
