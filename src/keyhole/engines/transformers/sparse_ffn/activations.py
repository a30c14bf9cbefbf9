"""What a model's activations usually are (CHESS), from prompts that it computes.

Source: arXiv 2409.01366; see `keyhole.feedforward.fit`.

Legend: T tokens, F channels, N numbers of an input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from keyhole.core.autograd import outside_inference_mode
from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.transformers.devices import input_device
from keyhole.engines.transformers.sparse_ffn.obstacles import check_in_memory, is_experts
from keyhole.engines.transformers.sparse_ffn.sites import (
    decoder_of,
    expert,
    gated,
    gated_sites,
    input_sites,
    unit_name,
    units,
)
from keyhole.feedforward import Fitted, GatedFit, InputFit, Rule, sparse_gated

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

_run: ContextVar[object] = ContextVar("keyhole_activations_run", default=None)


@outside_inference_mode()
@torch.no_grad()
def fit_activations(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    *,
    rule: Rule,
    attention: bool = True,
    computed: Callable[[], object] = lambda: None,
) -> dict[str, Fitted]:
    """What is known of the modules of a model that can skip weights, by their names.

    Args:
        prompts: token ids `[B, T]` without padding, each run through the model twice.
        attention: whether the projections of queries and of attention's output are among them.
        computed: told whenever a prompt was run through the model.

    Raises:
        UnsupportedModelError: a feed-forward, or attention, is none that is known here.
        ValueError: there is no prompt.
    """
    if not prompts:
        raise ValueError("there is no prompt to calibrate on; give more text")
    sites = gated_sites(model)
    for name, site in sites.items():
        check_in_memory(name, site)
    check_gated(sites)
    norms = {
        unit: one.down.weight.float().norm(dim=0)
        for name, site in sites.items()
        for unit, one in units(name, site).items()
    }
    fits = {unit: GatedFit(rule, norm) for unit, norm in norms.items()}
    inputs = input_sites(model) if attention else {}
    input_fits = {name: InputFit() for name in inputs}

    def means(name: str, site: nn.Module, args: tuple) -> None:
        for unit, gate, up in _factors(name, site, args):
            fits[unit].add_means(gate, up)

    def importance(name: str, site: nn.Module, args: tuple) -> None:
        for unit, gate, up in _factors(name, site, args):
            fits[unit].add(gate, up)

    def magnitudes(name: str, _site: nn.Module, args: tuple) -> None:
        input_fits[name].add(args[0])

    _watch(model, prompts, [(means, sites)], computed)
    _watch(model, prompts, [(importance, sites), (magnitudes, inputs)], computed)
    # Experts that no token chose stay dense.
    return {name: fit.fitted for name, fit in {**fits, **input_fits}.items() if fit.tokens}


def _watch(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    watchers: Sequence[tuple[Callable[[str, nn.Module, tuple], None], Mapping[str, nn.Module]]],
    computed: Callable[[], object],
) -> None:
    """Run prompts through a model, while watchers are shown what comes into modules.

    Other threads and tasks may call the model meanwhile; their calls are not shown.
    """
    run = object()
    with ExitStack() as stack:
        stack.callback(_run.reset, _run.set(run))
        for watcher, sites in watchers:
            for name, site in sites.items():
                hook = partial(_show, run, partial(watcher, name))
                stack.callback(site.register_forward_pre_hook(hook).remove)
        forward = cast(Callable[..., Any], decoder_of(model).forward)
        for ids in prompts:
            forward(input_ids=ids.to(input_device(model)), use_cache=False)
            computed()


def _show(run: object, watcher: Callable[[nn.Module, tuple], None], site: nn.Module, args: tuple) -> None:
    """A forward pre-hook, of every call of a module."""
    if _run.get() is run:
        watcher(site, args)


@torch.no_grad()
def check_gated(sites: dict[str, nn.Module]) -> None:
    """Compare what feed-forwards compute with what they are taken for.

    Raises:
        UnsupportedModelError: they differ.
    """
    for name, site in sites.items():
        weight: Tensor = next(site.parameters())
        one = expert(site, 0) if is_experts(site) else gated(site)
        x = torch.randn(3, one.gate.weight.shape[1], generator=torch.Generator().manual_seed(0))
        x = x.to(weight)
        routing = (x.new_zeros(3, 1, dtype=torch.long), x.new_ones(3, 1)) if is_experts(site) else ()
        try:
            found = site.forward(x, *routing)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise _unknown(name, site) from error
        expected, _ = sparse_gated(one, x, torch.zeros(1, device=x.device), "gate")
        size = float(expected.abs().max())
        if (
            found.shape != expected.shape
            or not float((found - expected).abs().max()) <= _TOLERANCE[x.dtype] * size
        ):
            raise _unknown(name, site)


def _unknown(name: str, site: nn.Module) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name}, a {type(site).__name__}, does not compute down(act(gate(x)) * up(x)), so its weights "
        "cannot be skipped; leave `chess` out"
    )


def _factors(name: str, site: Any, args: tuple) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The factors `[T, F]` of a call of a feed-forward, or of each of its experts that is chosen."""
    x = args[0].flatten(0, -2)
    if not is_experts(site):
        yield name, *gated(site).factors(x)
        return
    for index in args[1].unique().tolist():
        yield unit_name(name, index), *expert(site, index).factors(x[(args[1] == index).any(-1)])
