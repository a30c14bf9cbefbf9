"""What a benchmark is: samples read from files of its own format, and a score for each answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Turn:
    """One question of a sample, and how its answer is judged.

    Attributes:
        reference: what the metric compares with, as the benchmark's file has it.
        limit: tokens an answer may take.
        tail: the question, where the sample's prompt ends before it.
        history: pairs of the reference answer to the turn before and the question that follows it, from the
            second question of a conversation on. The conversation so far is the prompt and these.
        metric: what to score by, where turns of a sample differ; else the sample's task.
    """

    reference: Any
    limit: int
    tail: str = ""
    history: tuple[tuple[str, str], ...] = ()
    metric: str = ""


@dataclass(frozen=True)
class Sample:
    """A prompt with one question, or with several that share it.

    Attributes:
        task: a task of the benchmark, as `Benchmark.tasks` names it.
        id: unique within the task.
        prompt: text up to the first answer; with turns that have a `tail`, text up to the question.
        context: the document in the prompt. Neighbouring samples of equal context are read together.
        chat: whether the benchmark asks through the model's chat template.
        reply: text the answer begins with, which is given.
        cut: whether the benchmark cuts a prompt in the middle that is longer than the model's range.
        groups: further partitions that scores are reported by, such as `difficulty`.
    """

    task: str
    id: str
    prompt: str
    turns: tuple[Turn, ...]
    context: str = ""
    chat: bool = True
    reply: str = ""
    cut: bool = False
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What benchmarks that make their prompts, or can be asked in several ways, want to know.

    Attributes:
        lengths: tokens of the prompts of a grid.
        depths: where a needle is, in percent of the context.
        repeats: prompts of each cell of a grid.
        requests: questions on a shared context are asked one by one, not as one conversation.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    depths: tuple[int, ...] = (0, 25, 50, 75, 100)
    repeats: int = 1
    seed: int = 0
    requests: bool = False


class Benchmark(ABC):
    """One benchmark on one directory of files.

    Attributes:
        name: as the command line has it.
        paper: where it is published.
        notes: what makes its scores here differ from published ones; empty if nothing does.
        is_grid: whether its samples have a length and a depth, so that there is a picture of them.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    is_grid: ClassVar[bool] = False

    def __init__(self, data: Path | None, options: Options) -> None:
        self.data, self.options = data, options
        self.notes: list[str] = []

    @property
    def folder(self) -> Path:
        """The directory of files.

        Raises:
            ValueError: none was given, or it is not there.
        """
        if self.data is None:
            raise ValueError(f"{self.name} reads files; give their directory with --data DIR")
        if not self.data.is_dir():
            raise ValueError(f"there is no directory {str(self.data)!r}; give the files of {self.name}")
        return self.data

    @abstractmethod
    def tasks(self) -> list[str]:
        """The tasks for which there are files.

        Raises:
            ValueError: there are none, with the form that is expected.
        """

    @abstractmethod
    def samples(self, task: str) -> Iterable[Sample]:
        """The samples of a task, in the order of its file.

        Raises:
            ValueError: a file is not of the benchmark's form, with file and line.
        """

    @abstractmethod
    def score(self, metric: str, reference: Any, answer: str) -> float:
        """How good an answer is, from 0 to 1, by the benchmark's metric of a task."""

    def check(self, task: str) -> None:  # noqa: B027
        """Raise ValueError if a task cannot be scored, with what is missing."""
