"""`keyhole lm-eval`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import typer

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def lm_eval(ctx: typer.Context) -> None:
    """Run lm-eval's command line with `--model keyhole --model_args pretrained=...,method=...`."""
    if find_spec("lm_eval") is None:
        raise ValueError("keyhole lm-eval needs lm-eval; install it with: pip install 'keyhole[lm-eval]'")
    from lm_eval.__main__ import cli_evaluate  # type: ignore[import-not-found]

    import keyhole.evaluation.lm_eval  # noqa: F401  registers the class

    given = sys.argv
    sys.argv = ["keyhole lm-eval", *(ctx.args or ["--help"])]
    try:
        cli_evaluate()
    finally:
        sys.argv = given
