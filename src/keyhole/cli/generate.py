"""`keyhole generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli import options
from keyhole.cli.console import Report, progress
from keyhole.cli.inputs import load, read_text
from keyhole.cli.spent import print_spent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from keyhole.evaluation.prompts import Start
    from keyhole.generation.decoding import Token
    from keyhole.methods import Recipe


def generate(
    prompt_file: Annotated[str, typer.Option(help="Text file to read; - for stdin.")],
    question: Annotated[str, typer.Option(help="What to ask about it; goes behind the text.")] = "",
    model: options.Model = None,
    method: Annotated[str, typer.Option(help="As `keyhole methods` lists them, with options.")] = "pqcache",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    chunk: Annotated[int, typer.Option(min=2, help="Tokens of the prompt computed at once.")] = 8192,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Answer over a document: the text goes to stdout, what was read, kept and spent to stderr."""
    text = read_text(prompt_file)
    with progress(quiet) as report:
        report("loading", 0, None)
        from keyhole.cli.prompt import build_prompt
        from keyhole.generation.decoding import decode, sampler, stop_tokens
        from keyhole.methods import Recipe

        recipe, pick = Recipe.parse(method).for_text(f"{text}\n{question}"), sampler(temperature, seed)
        loaded = load(model, threads)
        tokens = build_prompt(loaded, text, question, max_new_tokens)
        begun = _read(loaded.model, recipe, tokens, chunk, report)
    stops, last = stop_tokens(*loaded), int(tokens[0, -1])
    new = decode(loaded.model, last, begun.cache, limit=max_new_tokens, stops=stops, pick=pick)
    answer = _stream(loaded.tokenizer, new)
    if not quiet:
        print_spent(str(recipe), begun.cache, begun.seconds, answer)


def _read(model: PreTrainedModel, recipe: Recipe, tokens: Tensor, chunk: int, report: Report) -> Start:
    from keyhole.evaluation.prompts import start

    done, total = 0, tokens.shape[1] - 1

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report("reading the prompt" if done < total else "indexing", done, total)

    advance(0)
    return start(model, recipe, tokens, chunk=chunk, progress=advance)


def _stream(tokenizer: PreTrainedTokenizerBase, new: Iterable[Token]) -> list[Token]:
    """Print words as they are complete; returns all tokens."""
    import torch
    from transformers import TextStreamer

    streamer = TextStreamer(tokenizer, skip_special_tokens=True)  # type: ignore[arg-type]
    tokens = []
    for token in new:
        tokens.append(token)
        if not token.ends:
            streamer.put(torch.tensor([token.id]))
    streamer.end()
    return tokens
