"""`keyhole generate`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from keyhole.cli import options
from keyhole.cli.console import progress
from keyhole.cli.early import check_served, within
from keyhole.cli.inputs import find_source, load, read_text
from keyhole.cli.spent import print_chosen, print_spent
from keyhole.cli.view import ExactMass, RecordFile, View, Wanted
from keyhole.core.model_files import with_weights

_MOST = 2**31 - 1


def generate(
    prompt: Annotated[str | None, typer.Option(help="The text to ask about.")] = None,
    prompt_file: Annotated[
        str | None, typer.Option(help="File with the text to ask about; - is stdin.")
    ] = None,
    question: Annotated[
        str,
        typer.Option(help="The question, which follows the text; without one, the model continues the text."),
    ] = "",
    model: options.Model = None,
    weights: options.Weights = None,
    method: Annotated[
        str, typer.Option(help="Method with options, such as pqcache(budget=0.1); see `keyhole methods`.")
    ] = "pqcache",
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=_MOST, help="Maximum length of the answer, in tokens.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(callback=within(0, 1e6), help="Sampling temperature; 0 is greedy decoding.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(
            callback=within(0, 1, above=True),
            help="Sample from the smallest set of tokens with this probability.",
        ),
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the sampling.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Continue the text without the model's chat template."),
    ] = False,
    beyond_range: options.BeyondRange = False,
    chunk: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=_MOST,
            help="Prompt tokens computed at once.",
            show_default="1,024 on a CPU, 8,192 on a GPU or for methods that drop tokens",
        ),
    ] = None,
    view: View = None,
    record: RecordFile = None,
    exact_mass: ExactMass = False,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Answer a question about a text. The answer goes to stdout, statistics to stderr."""
    check_served(method)
    model = with_weights(model, weights)
    text = _text(prompt, prompt_file)
    find_source(model)
    wanted = Wanted(view, record, exact_mass)
    with progress(quiet) as report:
        report("loading", 0, None)
        from keyhole.generation import generate as answer

        loaded = load(model, threads)
        recorder = wanted.recorder()
        found = answer(
            loaded.model,
            loaded.tokenizer,
            context=text,
            questions=question,
            method=method,
            # There is one question, so methods that drop tokens may know it.
            question_aware=True,
            beyond_range=beyond_range,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop or (),
            chat=False if raw else None,
            chunk=chunk,
            stream=_write,
            progress=report,
            recorder=recorder,
        )
    _write("\n")
    wanted.write(recorder)
    if not quiet:
        if beyond_range:
            print_chosen(found, method)
        print_spent(found)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _text(prompt: str | None, prompt_file: str | None) -> str:
    if (prompt is None) == (prompt_file is None):
        raise ValueError("give the text by one of --prompt TEXT and --prompt-file FILE")
    if prompt_file is not None:
        return read_text(prompt_file)
    if not (prompt or "").strip():
        raise ValueError("--prompt is empty; give some text")
    return prompt or ""
