"""The work of `keyhole compare`, once its arguments are checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyhole.cli.asked import KL, Asked, Found
from keyhole.cli.console import Report, stderr
from keyhole.core.files import write_whole

if TYPE_CHECKING:
    from keyhole.evaluation import Row
    from keyhole.evaluation.divergence import DivergenceRow
    from keyhole.generation import Loaded


def run(asked: Asked, report: Report) -> Found:
    """All that is asked for.

    Raises:
        ValueError: as the measurements, and for files that cannot be read; before the model is loaded where
            that does not need it.
    """
    from keyhole.evaluation.candidates import candidates
    from keyhole.evaluation.comparison import find_tasks
    from keyhole.evaluation.divergence.records import merge, read_rows
    from keyhole.evaluation.haystack import Haystack
    from keyhole.evaluation.tasks import SINGLE_TURN

    if asked.read_from:
        return Found(divergences=_some(merge(map(read_rows, asked.read_from)), asked.read_from))
    # Read before the model is loaded, which takes longer.
    candidates(asked.methods, asked.budgets, left_out=None if asked.quiet else _left_out)
    names = [name for name in asked.tasks or SINGLE_TURN if name != KL]
    if names:
        find_tasks(names, beside=(KL,))
    text = None if asked.haystack is None else Haystack.named(asked.haystack)
    sources = _sources(asked) if KL in asked.tasks else []
    known = (
        read_rows(asked.json_file) if asked.json_file and asked.resume and asked.json_file.exists() else []
    )
    from keyhole.cli.inputs import load

    loaded, found = load(asked.model, asked.threads), Found()
    if names:
        found.rows = _answer(asked, names, text, loaded, report)
    if sources:
        from keyhole.cli.divergence import measure

        measure(asked, sources, known, loaded, report, found)
    return found


def _left_out(method: str, budget: str, reason: str) -> None:
    stderr().print(f"left out: {method} {budget}: {reason}", highlight=False, markup=False)


def _some(rows: list[DivergenceRow], files: list[Path]) -> list[DivergenceRow]:
    if not rows:
        raise ValueError(f"there are no rows of kl in {', '.join(repr(str(path)) for path in files)}")
    return rows


def _sources(asked: Asked) -> list[Any]:
    """The texts to measure on."""
    from keyhole.cli.divergence import OwnText
    from keyhole.evaluation.texts import texts

    if asked.own_texts:
        return [OwnText.read(path) for path in asked.own_texts]
    shipped = texts()
    if asked.texts > len(shipped):
        raise ValueError(f"--texts {asked.texts} is out of range; there are {len(shipped)} texts")
    return shipped[: asked.texts]


def _answer(asked: Asked, names: list[str], text: Any, loaded: Loaded, report: Report) -> list[Row]:
    from keyhole.cli.inputs import training_context
    from keyhole.evaluation import compare

    return compare(
        loaded.model,
        loaded.tokenizer,
        methods=asked.methods,
        budgets=asked.budgets,
        tasks=names,
        context=asked.context or training_context(loaded.model),
        samples=asked.samples,
        seed=asked.seed,
        haystack=text,
        progress=report,
    )


def write(found: Found, asked: Asked) -> None:
    """Write the files that are asked for, and name them."""
    from keyhole.evaluation.divergence.plot import draw as draw_divergences
    from keyhole.evaluation.divergence.records import write_records
    from keyhole.evaluation.plot import draw

    written = [asked.json_file, asked.times] if found.timings else [asked.json_file]
    if asked.json_file is not None and not (found.timings or asked.resume):
        write_records(asked.json_file, found.records())
    if asked.plot is not None and found.rows:
        write_whole(asked.plot, lambda path: draw(found.rows, path))
        written.append(asked.plot)
    if asked.plot is not None and found.divergences:
        plot = asked.plot.with_stem(f"{asked.plot.stem}-{KL}") if found.rows else asked.plot
        write_whole(plot, lambda path: draw_divergences(found.divergences, path))
        written.append(plot)
    for path in written:
        if path is not None and not asked.quiet:
            stderr().print(f"wrote {path}", highlight=False)
