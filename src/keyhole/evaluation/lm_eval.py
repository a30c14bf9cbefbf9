"""A model class of EleutherAI's lm-eval, whose requests are served by a method.

lm-eval finds its model classes in a registry without entry points, so `keyhole lm-eval` registers this one
and then runs lm-eval's own command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lm_eval.api.registry import register_model  # type: ignore[import-not-found]
from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]
from torch import Tensor

from keyhole.cache.usage import Usage
from keyhole.engines.transformers import KeyholeCache, attach, usage
from keyhole.generation.decoding import build_index, decode, prefill
from keyhole.generation.forking import fork, rewind
from keyhole.methods import Method, Recipe

_PIECE = 1024  # tokens of a context computed at once
Scored = tuple[float, bool]  # log-likelihood of a continuation, and whether it is the greedy one


@register_model("keyhole")
class KeyholeLM(HFLM):
    """lm-eval's own Hugging Face class with a method attached while requests are computed.

    Generation is lm-eval's. A continuation whose likelihood is asked for is fed token by token, each token a
    decode step: scored in one call, as lm-eval does, it would be read in full by most methods. What decode
    steps read is summed over all requests and put into the results, under `config`.

    Args:
        pretrained: as HFLM takes it.
        method: a method string.
        options: of HFLM.

    Raises:
        SpecError: the method cannot be read; found before the model is loaded.
        UnsupportedModelError: the model cannot be served, with the reason.
    """

    def __init__(self, pretrained: Any, method: str | Method | Recipe = "pqcache", **options: Any) -> None:
        self._recipe = Recipe.parse(method)
        options.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained=pretrained, **options)
        self._requests, self._usage = 0, Usage()

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        with attach(self.model, self._recipe) as attached:
            tokens = super()._model_generate(context, max_length, stop, **options)
            for _ in range(len(context)):  # usage is a mean over the rows of a batch
                self._count(attached.usage)
        return tokens

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,  # noqa: ARG002
        override_bs: int | None = None,  # noqa: ARG002
    ) -> list[Scored]:
        found: dict[int, Scored] = {}
        with attach(self.model, self._recipe):
            for context, numbers in self._by_context(requests).items():
                continuations = [requests[number][2] for number in numbers]
                for number, scored in zip(numbers, self._score(context, continuations), strict=True):
                    found[number] = scored
                    if requests[number][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[number][0], scored)
        return [found[number] for number in range(len(requests))]

    def _by_context(
        self, requests: Sequence[tuple[Any, list[int], list[int]]]
    ) -> dict[tuple[int, ...], list[int]]:
        """Numbers of the requests behind each context, cut on the left to the model's range as in HFLM."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            room = self.max_length + 1 - len(continuation)
            groups.setdefault(tuple(context[-room:]), []).append(number)
        return groups

    def _score(self, context: tuple[int, ...], continuations: list[list[int]]) -> Iterable[Scored]:
        """The likelihood of each continuation; the context is read once."""
        ahead = torch.tensor([context[:-1]], dtype=torch.long, device=self.model.device)
        cache = KeyholeCache(self.model, self._recipe)
        prefill(self.model, ahead, cache, chunk=_PIECE)
        build_index(self.model, cache)
        for continuation in continuations[:-1]:
            mine = fork(cache)
            yield self._force(context[-1], continuation, mine)
            rewind(mine, ahead.shape[1])
        yield self._force(context[-1], continuations[-1], cache)

    def _force(self, last: int, continuation: list[int], cache: KeyholeCache) -> Scored:
        total, greedy, given = 0.0, True, iter(continuation)

        def pick(logits: Tensor) -> int:
            nonlocal total, greedy
            token = next(given)
            total += float(logits.float().log_softmax(-1)[token])
            greedy = greedy and int(logits.argmax()) == token
            return token

        for _ in decode(self.model, last, cache, limit=len(continuation), pick=pick):
            pass
        self._count(usage(cache))
        return total, greedy

    def _count(self, read: Usage) -> None:
        self._usage, self._requests = self._usage + read, self._requests + 1

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's, and under `keyhole` the method with what its decode steps read, over all requests.

        `read_fraction` is None where no request had a decode step.
        """
        read = self._usage
        return super().get_model_info() | {
            "keyhole": {
                "method": str(self._recipe),
                "requests": self._requests,
                "decode_steps_of_layers": read.steps,
                "tokens_in_context": read.tokens,
                "tokens_read": read.read,
                "read_fraction": read.read / read.tokens if read.tokens else None,
                "bytes_read": read.bytes,
            }
        }
