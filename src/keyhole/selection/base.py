"""Select: which kept tokens a query reads.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, N tokens, S tokens read, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from keyhole.attention import Logits, Part
from keyhole.core.budget import Budget
from keyhole.core.layout import Regions
from keyhole.core.needs import Informed
from keyhole.storage import CapturableStorage, Storage


class Selection(NamedTuple):
    """The slots each KV head reads beside the always-read ones, ascending, each once.

    Attributes:
        slots: int32 `[B, Hkv, S]`; from `counts` on, filling without meaning (a valid slot).
        counts: int32 `[B, Hkv]`.
        mass: float32 `[B, Hkv]`, the share of the softmax that the selection and the always-read tokens
            together are estimated to hold, a mean over the query heads of the group.
    """

    slots: Tensor
    counts: Tensor
    mass: Tensor


class Means(NamedTuple):
    """Clusters of tokens with their mean values.

    Attributes:
        labels: integers `[B, Hkv, last]`, the cluster of each slot; negative for slots in none.
        values: float32 `[B, Hkv, C, Dv]`.
    """

    labels: Tensor
    values: Tensor


class Estimates(NamedTuple):
    """What is known of each token before the window without reading it.

    Attributes:
        logits: float32 `[B, Hkv, G, last]`.
        variance: float32 `[B, Hkv, G, last]`, of what a logit is off; None where they are exact.
        means: its value, by cluster, where such are held.
    """

    logits: Tensor
    variance: Tensor | None = None
    means: Means | None = None


class Step(NamedTuple):
    """One decode step of one layer, as a selector sees it.

    Attributes:
        query: `[B, H, D]`, after RoPE.
        storage: what is stored, for selectors that score keys themselves.
        regions: which slots compete: those in [first, stop).
        anchor_lse: float32 `[B, H]`, log-sum-exp of the exact logits of the always-read tokens, and of the
            sink logit where the model has one.
        logits: how the model makes logits.
        budget: how much may be read.
    """

    query: Tensor
    storage: Storage
    regions: Regions
    anchor_lse: Tensor
    logits: Logits
    budget: Budget

    def limits(self) -> list[int]:
        """The most tokens each batch row may read; padding is no part of its context."""
        return [self.budget.limit(tokens) for tokens in self.regions.context]

    def limits_on_device(self) -> Tensor:
        """`limits` as int64 `[B]` on the device of the regions."""
        return self.regions.on_device(tuple(self.limits()))


class Selector(Informed, ABC):
    """An index over the keys of one layer, addressed by slot, that picks what a query reads.

    `length` tokens are indexed. The owner calls `build` once, then `append` with the keys that follow, in
    batches: a token is only asked for after it has left the always-read window. A layer whose selector
    `reads_all` is attended densely at every length; if it also `leads`, `watch` shows it each step. One of
    `one_list` reads the same slots for all heads.
    """

    length: int = 0
    reads_all: bool = False
    leads: bool = False
    one_list: bool = False
    by_estimates: bool = False  # it picks by `token_logits`, which err, so that better ones pick better

    @property
    def minimum(self) -> int:
        """Fewer candidates than this do not pay for an index; the owner then reads everything."""
        return 1

    @property
    def stale(self) -> bool:
        """Whether the index of some batch row no longer fits what was appended, so that `refit` is due."""
        return False

    @abstractmethod
    def build(self, keys: Tensor, regions: Regions) -> None:
        """Index `keys [B, Hkv, N, D]`, forgetting what was there; slots before `first` never compete."""

    def refit(self, keys: Tensor, regions: Regions) -> None:
        """Index all of `keys [B, Hkv, N, D]` again where it is `stale`; other batch rows stay."""
        self.build(keys, regions)

    @abstractmethod
    def append(self, keys: Tensor) -> None:
        """Index `keys [B, Hkv, T, D]` as the slots from `length` on."""

    @abstractmethod
    def select(self, step: Step) -> Selection:
        """Pick among the slots in [first, stop)."""

    def see(self, queries: Tensor, kv_heads: int, tokens: int) -> None:
        """Be shown some of the newest `queries [B, H, Q, D]` of a prompt, before `build` or between steps.

        `tokens` is how many there are by then, of which the queries are those of the last.
        """

    def watch(self, query: Tensor, storage: Storage, regions: Regions, logits: Logits) -> None:
        """See the step `query [B, H, D]` of a leading layer, which is read whole."""

    def expect(self, steps: int) -> None:
        """The layer takes so many decode steps before the next layer takes any."""

    def token_logits(self, step: Step) -> Tensor | None:  # noqa: ARG002
        """Estimated logits of the slots before the window, float32 `[B, Hkv, G, last]`; None if unknown."""
        return None

    def estimates(self, step: Step) -> Estimates | None:
        """What is known of each token, for budgets of error; None where an index does not tell them apart."""
        logits = self.token_logits(step)
        return None if logits is None else Estimates(logits)

    def summarise(self, storage: Storage, regions: Regions) -> None:
        """Take in what is stored, where the rest of a step is estimated; the index is up to date."""

    def rest(self, step: Step, selection: Selection) -> Part | None:  # noqa: ARG002
        """Attention over what competes and was not picked, by estimate; None where it counts as zero."""
        return None

    @abstractmethod
    def bytes_read(self, step: Step) -> int:
        """Bytes of the index, or of keys scored, that `select` reads for one KV head of one batch row."""

    def crop(self, length: int) -> None:
        """Forget the slots from `length` on."""
        self.length = min(self.length, length)

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""

    def state(self) -> dict[str, Tensor]:
        """The index as named tensors; empty where it is no more than its length."""
        return {}

    def restore(self, state: dict[str, Tensor], length: int) -> None:  # noqa: ARG002
        """Take over the `state` of an equal selector that had indexed `length` tokens."""
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes the index holds on the device."""
        return 0


class Capturable(Selector):
    """A selector whose steps can be of fixed size, see `keyhole.cache.captured`.

    `select`, and `watch` where it leads, then never wait for a GPU, and take where the window begins from
    `Regions.stop`. The storage of a step holds what there is room for, of which memory that no token has
    come to may be anything.
    """

    @property
    def varying(self) -> str:
        """What of this one has no fixed size, for all that; empty if all has."""
        return ""

    @abstractmethod
    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens, so that tensors stay where they are when more come."""

    @abstractmethod
    def place(self, storage: CapturableStorage, slot: Tensor) -> None:
        """Index the slot that int64 `slot [1]` names, of what is stored, without waiting for it.

        All slots before it are indexed. It may be placed again with another key, when steps were taken back.
        """

    def release(self, length: int) -> None:
        """Steps are over, and so many tokens are indexed; what was placed behind them was taken back."""
        self.length = length


class Unindexed(Capturable):
    """A selector without an index: it only counts what an index would hold."""

    def build(self, keys: Tensor, regions: Regions) -> None:  # noqa: ARG002
        self.length = keys.shape[2]

    def append(self, keys: Tensor) -> None:
        self.length += keys.shape[2]

    def reserve(self, tokens: int) -> None:
        pass

    def place(self, storage: CapturableStorage, slot: Tensor) -> None:
        pass
