"""`keyhole serve`."""

from __future__ import annotations

import logging
import socket
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhole.cli import asking, options
from keyhole.cli.console import reading_progress, stderr
from keyhole.cli.early import check_served
from keyhole.cli.inputs import find_source
from keyhole.core.model_files import joined_name, split_name, with_weights
from keyhole.serving.http.keys import Keys, read_keys
from keyhole.serving.http.settings import Settings, check_exposure, check_origin, listen_at, names_of

if TYPE_CHECKING:
    from keyhole.serving.scheduler import Scheduler

_MOST = 2**31 - 1
_NEEDED = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
_FOR_METRICS = {"prometheus_client": "prometheus-client"}
_EMBEDDED = "keyhole"  # under which the embedded model is served


def serve(
    model: options.Model = None,
    weights: options.Weights = None,
    method: Annotated[
        str, typer.Option(help="Method of requests that name none; see `keyhole methods`.")
    ] = "pqcache",
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than loopback need --api-key-file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File of keys, one a line, of which every request must carry one; mode 600."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name under which the server is addressed; repeatable.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin whose pages may use the server, as https://example.org; repeatable."),
    ] = None,
    max_context: Annotated[
        int | None,
        typer.Option(
            min=2, max=_MOST, help="Tokens of a prompt and its answer.", show_default="the model's range"
        ),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, max=1024, help="Requests that run at once.")] = 32,
    queue: Annotated[int, typer.Option(min=0, max=_MOST, help="Requests that may wait beyond those.")] = 128,
    memory: Annotated[
        str | None,
        typer.Option(
            callback=asking.size,
            help="What running requests may hold together, as 8GB.",
            show_default="half of what is free",
        ),
    ] = None,
    store: asking.Where = None,
    quota: asking.Quota = None,
    store_prompts: Annotated[
        bool, typer.Option(help="Whether beginnings of prompts are kept in the store and read from there.")
    ] = True,
    metrics: Annotated[bool, typer.Option("--metrics", help="Serve /metrics, for Prometheus.")] = False,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Serve a model by OpenAI's API, with documents that are read once.

    The first SIGTERM or Ctrl-C lets requests that run or wait end, for a minute; a second one ends at once.
    """
    check_served(method)
    model = with_weights(model, weights)
    _check_installed(metrics)
    keys = Keys() if api_key_file is None else read_keys(api_key_file)
    check_exposure(host, keys)
    settings = Settings(
        model=_served_as(model),
        keys=keys,
        hosts=names_of(host, allow_host or []),
        origins=frozenset(check_origin(origin) for origin in cors_origin or []),
        metrics=metrics,
        records=True,
    )
    find_source(model)
    with listen_at(host, port) as listener:
        scheduler = _scheduler(
            *(model, method, store, quota, quiet, threads),
            slots=slots,
            queue=queue,
            max_context=max_context,
            memory=None if memory is None else asking.bytes_of(memory),
            store_prompts=store_prompts,
        )
        try:
            _run(scheduler, _stored_as(settings, model), listener, quiet=quiet)
        finally:
            scheduler.close(drain=False)


def _scheduler(
    model: str | None,
    method: str,
    store: Path | None,
    quota: str | None,
    quiet: bool,
    threads: int | None,
    **limits: Any,
) -> Scheduler:
    """Load the model, which takes long."""
    with reading_progress(quiet) as report:
        report("loading", 0, None)
        asking.set_threads(threads)
        from keyhole.documents.models import model_name
        from keyhole.serving.scheduler import Scheduler
        from keyhole.view.served import ServedRecorder

        library = asking.library_at(store, quota, quiet=quiet)
        name = model_name(model)
        loaded = library.models.get(name)
        recorder = partial(ServedRecorder, loaded.tokenizer)  # of which the scheduler uses copies
        return Scheduler(loaded, model=name, library=library, recipe=method, recorder=recorder, **limits)


def _stored_as(settings: Settings, model: str | None) -> Settings:
    from keyhole.documents.models import model_name

    return replace(settings, stored_as=model_name(model))


def _run(scheduler: Scheduler, settings: Settings, listener: socket.socket, *, quiet: bool) -> None:
    from keyhole.serving.http.app import make_app
    from keyhole.serving.http.server import serve

    set_logs(quiet)
    if not quiet:
        host, port, *_ = listener.getsockname()
        shown = f"[{host}]" if ":" in host else host
        library = scheduler.library
        place = "" if library is None else f"; documents in {library.path}"
        stderr().print(
            f"serving {settings.model} by {scheduler.recipe} at http://{shown}:{port}{place}",
            highlight=False,
            markup=False,
        )
    serve(make_app(scheduler, settings), listener)


def set_logs(quiet: bool) -> None:
    """A line for each request on stderr, or only what goes wrong."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("keyhole.serving", logging.INFO), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING if quiet else level)
        logger.addHandler(handler)
        logger.propagate = False


def _check_installed(metrics: bool) -> None:
    needed = _NEEDED | (_FOR_METRICS if metrics else {})
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise ValueError(f"serving needs {', '.join(missing)}; pip install 'keyhole[server]'")


def _served_as(model: str | None) -> str:
    """The name that clients see; of a path its last part, as the folders of this machine are not theirs."""
    if model is None:
        return _EMBEDDED
    plain, form = split_name(model)
    path = Path(plain).expanduser()
    name = path.absolute().name.removesuffix(".gguf") if str(plain) and path.exists() else str(plain)
    return str(joined_name(name or _EMBEDDED, form))
