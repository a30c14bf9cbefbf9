"""Programs of JAX, compiled for SPU. Every party compiles the same one from public shapes."""

from __future__ import annotations

# pyright: reportMissingImports=false
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import ShapeDtypeStruct as Shape
from spu import libspu
from spu.utils import frontend

Shapes = dict[str, Shape]


class Program(NamedTuple):
    """A compiled program; inputs and outputs are shares by name."""

    name: str
    executable: libspu.Executable
    outputs: Shapes

    def renamed(self, rename: Callable[[str], str]) -> Program:
        """The same code on shares of other names."""
        mine = self.executable
        ins, outs = ([rename(name) for name in names] for names in (mine.input_names, mine.output_names))
        executable = libspu.Executable(name=mine.name, input_names=ins, output_names=outs, code=mine.code)
        return Program(self.name, executable, {rename(name): size for name, size in self.outputs.items()})


def compiled(name: str, function: Callable[[dict[str, Any]], dict[str, Any]], inputs: Shapes) -> Program:
    """Compile a function from named arrays to named arrays."""
    names = sorted(inputs)
    options = libspu.CompilerOptions()
    # Else x / broadcast(y) divides once for each x.
    options.enable_optimize_denominator_with_broadcast = True
    made = jax.eval_shape(function, inputs)
    executable, _ = frontend.compile(
        frontend.Kind.JAX,
        function,
        [inputs],
        {},
        names,
        [libspu.Visibility.VIS_SECRET] * len(names),
        lambda _: sorted(made),
        copts=options,
    )
    executable.name = name
    return Program(name, executable, {key: Shape(value.shape, value.dtype) for key, value in made.items()})
