"""One evaluation from settings to rows: files read and checked, then a model asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from keyhole.core.version import __version__
from keyhole.engines.transformers.sizes import position_range
from keyhole.evaluation.benchmarks.base import Benchmark, Options, Sample
from keyhole.evaluation.benchmarks.encoding import Encoder
from keyhole.evaluation.benchmarks.registry import BENCHMARKS
from keyhole.evaluation.benchmarks.rowfile import Row, RowFile
from keyhole.evaluation.benchmarks.runner import Run
from keyhole.generation.loading import Loaded

# Settings that say which questions are asked, and not how: a run may go on with others.
_CHOICE = ("data", "tasks", "limit", "lengths", "depths", "repeats")
Progress = Callable[[str, int, int], None]  # task and method, answers there are, answers in all


@dataclass(frozen=True)
class Settings:
    """What is asked, and how; `Options` explains those of a grid.

    Attributes:
        tasks: labels, or the names of tasks and folders in them; all if empty.
        limit: samples of each task.
        chat: as the benchmark does where None.
        max_length: tokens of a prompt beyond which it is cut, where the benchmark cuts.
    """

    benchmark: str
    data: Path | None = None
    tasks: Sequence[str] = ()
    limit: int | None = None
    chat: bool | None = None
    max_length: int | None = None
    requests: bool = False
    lengths: tuple[int, ...] = Options.lengths
    depths: tuple[int, ...] = Options.depths
    repeats: int = 1
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """The settings as JSON files hold them."""
        return asdict(self) | {"data": None if self.data is None else str(self.data)}


class Result(NamedTuple):
    """Rows of all answers, what makes scores differ from published ones, and all settings."""

    rows: list[Row]
    notes: list[str]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A benchmark with the tasks to run, and how many answers each method gives."""

    settings: Settings
    benchmark: Benchmark
    tasks: list[str]
    answers: int

    def samples(self, task: str) -> Iterator[Sample]:
        return islice(self.benchmark.samples(task), self.settings.limit)


def prepare(settings: Settings) -> Prepared:
    """Find the files, and read them once.

    Raises:
        ValueError: an unknown task, a file that is not of the benchmark's form, or a package that is missing.
    """
    benchmark = _make(settings, Options())
    tasks = chosen(benchmark.tasks(), settings.tasks)
    for task in tasks:
        benchmark.check(task)
    found = Prepared(settings, benchmark, tasks, 0)
    return found if benchmark.is_grid else Prepared(settings, benchmark, tasks, _count(found))


def evaluate(
    loaded: Loaded,
    found: Prepared,
    methods: Sequence[str],
    *,
    model: str,
    answers: Path | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Answer the questions of a benchmark by each method.

    Args:
        model: its name, for the settings that are kept with the answers.
        answers: file that answers are appended to; those that it has are not made again.

    Raises:
        ValueError: `answers` is of other settings.
    """
    settings = found.settings
    if found.benchmark.is_grid:
        options = Options(
            loaded.tokenizer, settings.lengths, settings.depths, settings.repeats, settings.seed
        )
        found = Prepared(settings, _make(settings, options), found.tasks, 0)
        found = Prepared(settings, found.benchmark, found.tasks, _count(found))
    encoder = Encoder(
        loaded.tokenizer,
        chat=settings.chat,
        most=position_range(loaded.model),
        longest=settings.max_length,
    )
    total = found.answers * len(methods)
    made = {**settings.record(), "model": model, "dtype": _dtype(loaded.model), "keyhole": __version__}
    with RowFile(answers, {name: value for name, value in made.items() if name not in _CHOICE}) as file:
        run = Run(
            loaded,
            found.benchmark,
            encoder,
            methods,
            file,
            chunk=chunk,
            progress=None if progress is None else lambda doing, done: progress(doing, done, total),
        )
        rows = [row for task in found.tasks for row in run.answer(found.samples(task))]
    return Result(rows, _notes(found.benchmark, rows), made)


def chosen(available: Sequence[str], wanted: Iterable[str]) -> list[str]:
    """The labels that are wanted, or have a wanted name as a part; all if nothing is wanted.

    Raises:
        ValueError: there is no such task.
    """
    names = list(dict.fromkeys(wanted))
    unknown = next((name for name in names if not any(_is(label, name) for label in available)), None)
    if unknown is not None:
        raise ValueError(f"there is no task {unknown!r}; there are: {', '.join(available)}")
    return [label for label in available if not names or any(_is(label, name) for name in names)]


def _is(label: str, name: str) -> bool:
    return name == label or name in label.split("/")


def _make(settings: Settings, options: Options) -> Benchmark:
    requests = Options(**{**vars(options), "requests": settings.requests})
    return BENCHMARKS[settings.benchmark](settings.data, requests)


def _count(found: Prepared) -> int:
    return sum(len(sample.turns) for task in found.tasks for sample in found.samples(task))


def _dtype(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


def _notes(benchmark: Benchmark, rows: Sequence[Row]) -> list[str]:
    refused = [row for row in rows if row.refused]
    cut = sum(row.cut_tokens > 0 for row in rows)
    notes = list(benchmark.notes)
    if refused:
        notes.append(
            f"{len(refused)} of {len(rows)} questions were refused, the first since {refused[0].refused}"
        )
    if cut:
        notes.append(f"{cut} of {len(rows)} questions were asked on a prompt cut in the middle")
    return notes
