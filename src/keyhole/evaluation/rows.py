"""What a comparison finds, one row for each method, budget and task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from keyhole.cache.usage import Usage
from keyhole.evaluation.candidates import Candidate
from keyhole.evaluation.mass import MassTally
from keyhole.feedforward import Activated
from keyhole.storage import Footprint

MEAN = "mean"
_NOT_RECORDED = ("recall", "mass_target", "mass_reached")


@dataclass(frozen=True)
class Outcome:
    """One sample answered by one candidate."""

    accuracy: float
    accuracy_full: float
    usage: Usage
    tally: MassTally
    footprint: Footprint
    prefill_s: float
    decode_s: Sequence[float]
    activated: Activated = field(default_factory=Activated)


@dataclass(frozen=True)
class Row:
    """One method at one budget on one task, or the mean over the tasks.

    Attributes:
        task: a task's name, or `mean`.
        context: tokens of the prompts, at most.
        budget: as `Budget` reads it, or `full`.
        accuracy: share of the expected answers found, by greedy decoding.
        accuracy_full: the same for full attention, on the same samples.
        read_fraction: tokens read of those in the cache, a mean over KV heads, layers and steps.
        mass_estimated: share of the softmax the method believes to have read; None where tokens are dropped,
            for what they would get is not known then.
        mass_exact: share of the softmax that it did read; None as before.
        kv_bytes_read_per_token: bytes of keys, values and index that one new token reads in all layers.
        kv_bytes_device: bytes held after decoding on the model's device; `host` and `disk` likewise.
        prefill_s: seconds until the first decode step can start, index included.
        decode_ms: milliseconds of one decode step.
        weights_read: share of the weights that a decode step read.
        recall: share of the selected tokens that exact scores would have selected; 1 where all are read, None
            where tokens are dropped.
        mass_target: the mass the budget asks for, where it does.
        mass_reached: share of the cases (layer, KV head, step) whose exact mass reaches the target.
    """

    method: str
    task: str
    context: int
    budget: str
    samples: int
    accuracy: float
    accuracy_full: float
    read_fraction: float
    mass_estimated: float | None
    mass_exact: float | None
    kv_bytes_read_per_token: float
    kv_bytes_device: float
    kv_bytes_host: float
    kv_bytes_disk: float
    prefill_s: float
    decode_ms: float
    weights_read: float = 1.0
    recall: float | None = 1.0
    mass_target: float | None = None
    mass_reached: float | None = None

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean over the tasks."""
        return self.task == MEAN

    def record(self) -> dict[str, str | int | float | None]:
        """The row as JSON files hold it, without what only the printed table shows."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_RECORDED}


def summarise(candidate: Candidate, task: str, context: int, outcomes: Sequence[Outcome]) -> Row:
    """One row from all samples of a task, or of all tasks."""
    usage = sum((outcome.usage for outcome in outcomes), Usage())
    cases = sum(outcome.tally.cases for outcome in outcomes)
    steps = [seconds for outcome in outcomes for seconds in outcome.decode_s]
    footprints = [outcome.footprint for outcome in outcomes]
    reached = sum(outcome.tally.reached for outcome in outcomes) / cases
    known = not candidate.recipe.drops
    return Row(
        method=candidate.method,
        task=task,
        context=context,
        budget=candidate.budget,
        samples=len(outcomes),
        accuracy=mean([outcome.accuracy for outcome in outcomes]),
        accuracy_full=mean([outcome.accuracy_full for outcome in outcomes]),
        read_fraction=usage.read / usage.tokens,
        mass_estimated=usage.mass / usage.steps if known else None,
        mass_exact=sum(outcome.tally.mass for outcome in outcomes) / cases if known else None,
        kv_bytes_read_per_token=usage.bytes / len(steps),
        kv_bytes_device=mean([footprint.device for footprint in footprints]),
        kv_bytes_host=mean([footprint.host for footprint in footprints]),
        kv_bytes_disk=mean([footprint.disk for footprint in footprints]),
        prefill_s=mean([outcome.prefill_s for outcome in outcomes]),
        decode_ms=1000 * mean(steps),
        weights_read=sum((outcome.activated for outcome in outcomes), Activated()).share,
        recall=sum(outcome.tally.recall for outcome in outcomes) / cases if known else None,
        mass_target=candidate.mass,
        mass_reached=None if candidate.mass is None else reached,
    )


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
