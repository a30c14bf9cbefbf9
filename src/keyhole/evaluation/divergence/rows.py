"""What is found of one method at one budget on all texts, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from keyhole.evaluation.divergence.intervals import interval

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Settings:
    """What rows must share to be compared.

    Attributes:
        model: a name for people; `weights` is what counts.
        weights: the model's fingerprint, its dtype among the parts.
        context: tokens of each text that are read before the first prediction.
        tokens: tokens that are predicted after them.
        texts, digests: names and token digests.
        version: of Keyhole.
    """

    model: str
    weights: str
    dtype: str
    context: int
    tokens: int
    texts: tuple[str, ...]
    digests: tuple[str, ...]
    version: str

    @property
    def label(self) -> str:
        """Model and dtype for people; directories often have the dtype in their name."""
        return self.model if self.model.endswith(self.dtype) else f"{self.model}, {self.dtype}"

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for settings whose rows may stand in one table."""
        return (self.weights, self.context, self.tokens, self.texts, self.digests, self.version)


@dataclass(frozen=True)
class TextScore:
    """One text under one method. What is read and held is the mean over the texts computed with it.

    Attributes:
        kl: KL(dense || method) of each predicted token in nats.
        agreed: predictions whose most probable token is dense attention's.
        loss, loss_dense: mean negative log-likelihood of the text's tokens in nats.
        read_fraction: tokens read of those in the cache.
        read, device, host, disk: bytes, as in `DivergenceRow`.
        weights_read: share of the weights that a step reads.
        mass_estimated: share of attention mass that the method believes to have read.
        mass_exact, mass_reached: as in `Summary`; None where they were not measured.
        error_estimated, error_exact, error_kept: likewise.
    """

    name: str
    kl: tuple[float, ...]
    agreed: int
    loss: float
    loss_dense: float
    read_fraction: float
    read: float
    device: float
    host: float
    disk: float
    weights_read: float
    mass_estimated: float | None = None
    mass_exact: float | None = None
    mass_reached: float | None = None
    error_estimated: float | None = None
    error_exact: float | None = None
    error_kept: float | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> TextScore:
        return cls(**{**record, "kl": tuple(record["kl"])})


class Summary(NamedTuple):
    """Over all tokens of all texts, with 95% intervals; None for a single text.

    Attributes:
        kl_mean, kl_median, kl_worst: KL(dense || method) in nats.
        top1: share of predictions whose most probable token is dense attention's.
        perplexity_ratio: the method's perplexity over that of dense attention.
        kv_bytes_read_per_token: bytes of keys, values and index that one step reads in all layers.
        kv_bytes_device: bytes held after the last step on the model's device; `host` and `disk` likewise.
        mass_exact: mean share of attention mass read.
        mass_reached: share of (layer, KV head, step) whose exact mass reaches the target.
        error_estimated: mean bound of the relative error of attention's output, where the budget is one.
        error_exact: mean relative error.
        error_kept: share of (layer, query head, step) whose exact error is within the budget.
    """

    kl_mean: float
    kl_mean_interval: Interval
    kl_median: float
    kl_median_interval: Interval
    kl_worst: float
    top1: float
    top1_interval: Interval
    perplexity: float
    perplexity_dense: float
    perplexity_ratio: float
    perplexity_ratio_interval: Interval
    read_fraction: float
    kv_bytes_read_per_token: float
    kv_bytes_device: float
    kv_bytes_host: float
    kv_bytes_disk: float
    weights_read: float
    mass_estimated: float | None
    mass_exact: float | None
    mass_reached: float | None
    error_estimated: float | None
    error_exact: float | None
    error_kept: float | None


@dataclass(frozen=True)
class DivergenceRow:
    """One method at one budget.

    Attributes:
        budget: as `Budget` reads it, or `full`.
        mass_target: the attention mass the budget asks for, where it does.
        error_target: the relative error it allows, likewise.
        by_text: in the order of the settings' texts; fewer while a measurement is under way.
    """

    settings: Settings
    method: str
    budget: str
    mass_target: float | None
    by_text: tuple[TextScore, ...]
    error_target: float | None = None

    @property
    def complete(self) -> bool:
        return len(self.by_text) == len(self.settings.texts)

    @cached_property
    def summary(self) -> Summary:
        """Raises ValueError before the first text is done."""
        if not self.by_text:
            raise ValueError(f"{self.method} {self.budget} has no text yet")
        return _summarise(self.by_text)

    def record(self) -> dict[str, Any]:
        """The row as JSON files hold it; `of` reads it again."""
        targets = {"mass_target": self.mass_target, "error_target": self.error_target}
        row = {"method": self.method, "budget": self.budget} | targets
        texts = {"by_text": [asdict(text) for text in self.by_text]}
        return {"task": "kl"} | row | self.summary._asdict() | asdict(self.settings) | texts

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> DivergenceRow:
        """Raises KeyError or TypeError where something is missing."""
        known = {field.name: record[field.name] for field in fields(Settings)}
        known |= {name: tuple(known[name]) for name in ("texts", "digests")}
        settings = Settings(**known)
        texts = tuple(map(TextScore.of, record["by_text"]))
        targets = record["mass_target"], texts, record.get("error_target")  # earlier files have no errors
        return cls(settings, record["method"], record["budget"], *targets)


def _summarise(texts: Sequence[TextScore]) -> Summary:
    kl = np.array([text.kl for text in texts])
    agreed = np.array([[text.agreed / len(text.kl)] for text in texts])
    loss, dense = (np.array([[getattr(text, name)] for text in texts]) for name in ("loss", "loss_dense"))
    held = {f"kv_bytes_{tier}": _mean(texts, tier) for tier in ("device", "host", "disk")}
    shares = ("read_fraction", "weights_read", "mass_estimated", "mass_exact", "mass_reached")
    shares += ("error_estimated", "error_exact", "error_kept")
    return Summary(
        kl_mean=float(kl.mean()),
        kl_mean_interval=interval(kl.mean(1, keepdims=True), _mean_of),
        kl_median=float(np.median(kl)),
        kl_median_interval=interval(kl, lambda drawn: np.median(drawn, axis=-1)),
        kl_worst=float(kl.max()),
        top1=float(agreed.mean()),
        top1_interval=interval(agreed, _mean_of),
        perplexity=float(np.exp(loss.mean())),
        perplexity_dense=float(np.exp(dense.mean())),
        perplexity_ratio=float(np.exp((loss - dense).mean())),
        perplexity_ratio_interval=interval(loss - dense, lambda drawn: np.exp(drawn.mean(-1))),
        kv_bytes_read_per_token=_mean(texts, "read"),
        **held,
        **{name: _mean(texts, name) for name in shares},
    )


def _mean_of(drawn: np.ndarray) -> np.ndarray:
    return drawn.mean(-1)


def _mean(texts: Sequence[TextScore], name: str) -> Any:
    """The mean of a number over the texts; None where it is unknown of one."""
    values = [getattr(text, name) for text in texts]
    return None if None in values else float(np.mean(values))
