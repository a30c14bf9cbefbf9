"""NOSA: block selection that is trained to change little from step to step, for keys on a slower place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.facts import ON_DEVICE, Differs, Facts
from keyhole.methods.infllm_v2 import InfLLMV2
from keyhole.prefill import BiasedPrefill, Prefill
from keyhole.selection import Selector, StaticSelector
from keyhole.selection.importance import TRAIN, ImportanceHead, read_heads
from keyhole.storage import BiasedStorage, DeviceStorage, Storage


@dataclass(frozen=True)
class Nosa(InfLLMV2):
    """Huang et al., "NOSA: Native and Offloadable Sparse Attention", 2025.

    As `infllm_v2`, but the query chooses only a share of the blocks, and the importance of their tokens the
    others. Importance follows from a token's values alone, by a head that is trained with the model, and is
    added to the token's logits in prompts and steps. So the share `1 - query_share` of the blocks of a step,
    at least, was read by the one before, and is not fetched again with `place=host` or `place=disk`, which
    the method is made for. A head whose scale is 0 leaves attention unchanged.
    """

    name: ClassVar[str] = "nosa"
    paper: ClassVar[str] = "NOSA, arXiv 2510.13602"
    summary: ClassVar[str] = "reads blocks by the query and by trained importance, which no query changes"
    facts: ClassVar[Facts] = Facts(
        stored="As infllm_v2, and from the first step on the mean importance of each `stride` tokens, in 4 "
        "bytes. Three more channels of each key and value, for the bias. The head has `Hkv * Dv + 1` numbers "
        "per KV head.",
        select="As infllm_v2, and a second ranking of N / block blocks by importance.",
        best_for="Keys and values on host or disk, and a model that was trained with it: consecutive steps "
        "read mostly the same blocks.",
        weak_at="Needs a trained head, and a window of at least a block. Importance is never revised: a "
        "token without it is found only by the query's share of blocks.",
        kept="(D + Dv + 6) * e",
        index="D * e / stride",
        scan="(D * e + 4) * N / stride",
        row="(D + Dv + 6) * e",
        products="G * D * N / stride",
        differs=(Differs("place", "host", ON_DEVICE),),
    )

    required: ClassVar[dict[str, str]] = {
        "head": f"train a model and its head with `{TRAIN} --out DIR`, and give nosa(head=DIR); infllm_v2 "
        "selects without one"
    }

    head: str | None = options.directory(
        help=f"Directory of the importance head, which `{TRAIN}` writes beside the model it trains. Needed."
    )
    query_share: float = options.number(
        0.25,
        ge=0,
        le=1,
        help="Share of the blocks of a step, sinks and window among them, that the query chooses; importance "
        "chooses the others. At least the block that the window cuts through counts to it.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kv_dtype != "auto":
            raise SpecError(
                f"{self.name}: kv_dtype={self.kv_dtype} is not supported, because the bias of keys would be "
                "quantised with them; give kv_dtype=auto, or use infllm_v2"
            )

    def prefill(self, info: ModelInfo) -> list[Prefill]:
        return [BiasedPrefill() for _ in info.layers]

    def storage(self, info: ModelInfo) -> list[Storage]:
        inner = super().storage(info) or [DeviceStorage() for _ in info.layers]
        heads = self.heads(info)
        return [
            BiasedStorage(storage, None if head is None or head.idle else head)
            for storage, head in zip(inner, heads, strict=True)
        ]

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [
            StaticSelector(self.block, self.stride, self.sinks, self.window, query_share=self.query_share)
            for _ in info.layers
        ]

    def heads(self, info: ModelInfo) -> Sequence[ImportanceHead | None]:
        """The importance heads of a model's served layers; None for each where there is no model.

        Raises:
            SpecError: the method has none.
            SavedStateError: they cannot be used.
        """
        if not info.layers or (self.head is None and info.fingerprint is None):
            return [None for _ in info.layers]
        if self.head is None:
            raise SpecError(f"{self.name} needs head=; {self.required['head']}")
        return read_heads(self.head, info, block=self.block, stride=self.stride)
