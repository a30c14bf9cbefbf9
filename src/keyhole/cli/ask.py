"""`keyhole ask` and `keyhole chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from keyhole.cli import asking, options
from keyhole.cli.console import reading_progress
from keyhole.cli.early import check_served
from keyhole.cli.inputs import find_source
from keyhole.cli.spent import print_spent
from keyhole.cli.view import ExactMass, RecordFile, View, Wanted
from keyhole.core.model_files import with_weights
from keyhole.documents.text import check_files

Document = Annotated[str, typer.Argument(help="Name of a stored document, or a file, which is added first.")]
Method = Annotated[
    str | None,
    typer.Option(help="For a file that is not stored yet: as in `keyhole add`.", show_default="pqcache"),
]


def ask(
    document: Document,
    question: Annotated[str, typer.Argument(help="The question.")],
    model: options.Model = None,
    weights: options.Weights = None,
    method: Method = None,
    kv_dtype: asking.KvDtype = None,
    place: asking.Place = None,
    exact: asking.Exact = False,
    max_new_tokens: asking.MaxNewTokens = 256,
    temperature: asking.Temperature = 0.0,
    seed: asking.Seed = 0,
    store: asking.Where = None,
    quota: asking.Quota = None,
    view: View = None,
    record: RecordFile = None,
    exact_mass: ExactMass = False,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Answer a question about a document. The answer goes to stdout, statistics to stderr."""
    if not question.strip():
        raise ValueError("the question is empty; give some text")
    wanted = Wanted(view, record, exact_mass)
    added = _added(document, store, with_weights(model, weights), method, kv_dtype)
    with asking.resumable("the same command"), reading_progress(quiet) as report:
        report("loading", 0, None)
        asking.set_threads(threads)
        library = asking.library_at(store, quota, quiet=quiet)
        recorder = wanted.recorder()
        found = library.ask(
            document,
            question,
            place=place,
            exact=exact,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stream=_writing(report),
            progress=report,
            recorder=recorder,
            **added,
        )
    _write("\n")
    wanted.write(recorder)
    if not quiet:
        print_spent(found)


def chat(
    document: Document,
    model: options.Model = None,
    weights: options.Weights = None,
    method: Method = None,
    kv_dtype: asking.KvDtype = None,
    place: asking.Place = None,
    exact: asking.Exact = False,
    max_new_tokens: asking.MaxNewTokens = 256,
    temperature: asking.Temperature = 0.0,
    seed: asking.Seed = 0,
    store: asking.Where = None,
    quota: asking.Quota = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Talk about a document: a question a line, until the end of the input (Ctrl-D)."""
    added = _added(document, store, with_weights(model, weights), method, kv_dtype)
    if document == "-":
        raise ValueError("the document cannot be stdin, on which the questions come; `keyhole add` it first")
    with asking.resumable("the same command"), reading_progress(quiet) as report:
        report("loading", 0, None)
        asking.set_threads(threads)
        library = asking.library_at(store, quota, quiet=quiet)
        talk = library.chat(document, place=place, progress=report, **added)
    said = {"exact": exact, "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    with talk:
        for question in _questions(quiet):
            talk.ask(question, stream=_write, **said)
            _write("\n")


def _added(
    document: str, store: Path | None, model: str | None, method: str | None, kv_dtype: str | None
) -> dict[str, Any]:
    """How a file is to be added; what cannot be asked is found out without importing torch."""
    check_served(method or "pqcache")
    if model is not None:
        find_source(model)
    from keyhole.documents.meant import find_document  # with SQLite and NumPy, which other commands spare

    if find_document(asking.store_at(store).documents(), document) is None:
        check_files([document])
    given = {"model": model, "method": method, "kv_dtype": kv_dtype}
    return {name: value for name, value in given.items() if value is not None}


def _questions(quiet: bool):
    """Lines of stdin that are not empty, behind a prompt on a terminal."""
    asks = sys.stdin.isatty() and not quiet
    while True:
        if asks:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _writing(report: Any):
    """Writes pieces of an answer; the progress bar goes when the first one comes."""

    def write(text: str) -> None:
        report.end()
        _write(text)

    return write


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
