"""What a run of continued training is given; imports no torch, as the command line checks it first."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from keyhole.core.budget import Budget
from keyhole.core.files import write_text
from keyhole.core.method_text import Term, read_terms

FILE = "settings.json"
FULL = "full"
IMPORTANT = "nosa"  # the selection that has an importance head
SELECTIONS = (FULL, "infllm_v2", IMPORTANT)
_OF_BLOCKS = ("block", "stride", "sinks", "window", "budget", "query_share")
_SHORTEST_TASKS = 256  # tokens of a row


@dataclass(frozen=True)
class Settings:
    """A run of continued training.

    Attributes:
        selection: `full`, or a method that selects blocks, with its options.
        source: what `keyhole.generation.load_model` reads; None is the embedded model.
        texts: files of text; empty for the shipped ones.
        tasks: train on rows of the embedded tasks, and not on texts.
        steps: of the optimiser.
        contexts: tokens of a row, in turns from step to step.
        batch: rows of a step.
        lr: learning rate of the weights.
        head_lr: learning rate of the importance head.
        sparse_prompts: all tokens read selected blocks, and not only those from the first asked one on.
        weights: train the model's weights, and not only the importance head.
        seed: of the head's first weights, and of the rows.
    """

    selection: str
    source: str | None
    texts: tuple[str, ...]
    tasks: bool
    steps: int
    contexts: tuple[int, ...]
    batch: int
    lr: float
    head_lr: float
    sparse_prompts: bool
    weights: bool
    seed: int

    def check(self) -> None:
        """Find what does not fit together; the options of a method are checked where it is made.

        Raises:
            ValueError: with the way out.
        """
        term = selection_term(self.selection)
        foreign = [name for name in term.options if name not in _OF_BLOCKS]
        if foreign:
            raise ValueError(
                f"{foreign[0]}= changes nothing in training; leave it out, and give only "
                f"{', '.join(_OF_BLOCKS)}"
            )
        budget = term.options.get("budget")
        if budget is not None and Budget.parse(budget).tokens is None:
            raise ValueError(
                f"budget={budget} depends on the context, but a model is trained to read one number of "
                "blocks; give tokens, such as budget=3008"
            )
        if self.tasks and self.texts:
            raise ValueError("--tasks and --text are two kinds of data; give one of them")
        if self.tasks and min(self.contexts) < _SHORTEST_TASKS:
            raise ValueError(
                f"--context {min(self.contexts)} has no room for the tasks; give at least {_SHORTEST_TASKS}"
            )
        if self.sparse_prompts and term.name == FULL:
            raise ValueError(f"--sparse-prompts is for selected blocks; leave it out with --selection {FULL}")
        if not self.weights and term.name != IMPORTANT:
            raise ValueError(f"--head-only trains the importance head, which only {IMPORTANT} has")

    def write(self, out: Path) -> None:
        write_text(out / FILE, json.dumps(asdict(self), indent=1) + "\n")

    def check_same(self, out: Path) -> None:
        """Raises ValueError where the run in `out` was started with other settings."""
        if not (out / FILE).exists():
            raise ValueError(f"the run in {str(out)!r} is of another kind; resume it without --selection")
        begun = json.loads((out / FILE).read_text(encoding="utf-8"))
        mine = json.loads(json.dumps(asdict(self)))
        differing = [f"{name} {begun.get(name)!r}" for name in mine if begun.get(name) != mine[name]]
        if differing:
            raise ValueError(
                f"the run in {str(out)!r} was started with {', '.join(differing)}; resume it with the same "
                "options, or give another --out"
            )


def selection_term(selection: str) -> Term:
    """Name and options of a selection.

    Raises:
        ValueError: it is none that can be trained.
    """
    terms = read_terms(selection)
    if len(terms) != 1 or terms[0].name not in SELECTIONS or (terms[0].name == FULL and terms[0].options):
        raise ValueError(
            f"--selection {selection!r} cannot be trained; give {', '.join(SELECTIONS[:-1])} or "
            f"{SELECTIONS[-1]}, the latter two with their options, such as nosa(block=16)"
        )
    return terms[0]
