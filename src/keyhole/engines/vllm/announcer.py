"""What vLLM's scheduler says of each step; imports nothing of vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scheduled:
    """One request's share of a step.

    Attributes:
        request: its id.
        begin: tokens computed before the step.
        count: new tokens.
        prompt: tokens of its prompt.
        blocks: the block that its first new token is written to, for each group of layers. In a step that
            block belongs to this request alone.
    """

    request: str
    begin: int
    count: int
    prompt: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """What the scheduler decided for one step.

    Attributes:
        scheduled: the requests that have tokens in it.
        gone: ids of those that have finished, or begin anew after they lost their blocks.
    """

    scheduled: tuple[Scheduled, ...]
    gone: frozenset[str]


class Announcer:
    """Follows the scheduler's decisions.

    Args:
        block_sizes: tokens of a block, for each group of layers.
    """

    def __init__(self, block_sizes: Sequence[int]) -> None:
        self._sizes = tuple(block_sizes)
        self._prompts: dict[str, int] = {}

    def step(self, decided: Any) -> Step:
        """The step in vLLM's `SchedulerOutput`."""
        fresh = {new.req_id for new in decided.scheduled_new_reqs}
        lost = set(decided.preempted_req_ids or ()) | set(decided.scheduled_cached_reqs.resumed_req_ids)
        for request in decided.finished_req_ids:
            self._prompts.pop(request, None)
        for new in decided.scheduled_new_reqs:
            self._prompts[new.req_id] = new.prompt_len
        blocks = decided.kv_connector_block_state
        scheduled = tuple(
            self._scheduled(request, begin, decided.num_scheduled_tokens[request], blocks)
            for request, begin in _begins(decided)
        )
        return Step(scheduled, frozenset(decided.finished_req_ids) | fresh | lost)

    def _scheduled(self, request: str, begin: int, count: int, state: Any) -> Scheduled:
        held = state.get_block_ids(request)
        first = tuple(ids[begin // size] for ids, size in zip(held, self._sizes, strict=True))
        return Scheduled(request, begin, count, self._prompts[request], first)


def _begins(decided: Any) -> Iterator[tuple[str, int]]:
    for new in decided.scheduled_new_reqs:
        yield new.req_id, new.num_computed_tokens
    cached = decided.scheduled_cached_reqs
    yield from zip(cached.req_ids, cached.num_computed_tokens, strict=True)
