"""Blocks of a pool, by vLLM's own manager of them and ours of a group of layers; no engine is started."""

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` has an environment with it")

from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

from keyhole.engines.vllm.hits import Hits, hits_of
from keyhole.engines.vllm.manager import KeyholeManager, register_specs
from keyhole.engines.vllm.spec import KeyholeSpec
from keyhole.methods import Recipe

BLOCK, BLOCKS, PIECE = 16, 41, 128
SELECTIVE = Hits(64, False)


def spec(hits=SELECTIVE, mirrored=False):
    sizes = {"block_size": BLOCK, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
    return KeyholeSpec(**sizes, hits=hits, mirrored=mirrored, in_flight=PIECE)


def pool(own):
    register_specs()
    init_none_hash(sha256)
    group = KVCacheGroupSpec(["layer"], own)
    return KVCacheManager(
        KVCacheConfig(num_blocks=BLOCKS, kv_cache_tensors=[], kv_cache_groups=[group]),
        max_model_len=4096,
        scheduler_block_size=BLOCK,
        hash_block_size=BLOCK,
        max_in_flight_tokens=PIECE,
    )


def request(name, tokens):
    how = SamplingParams(max_tokens=500)
    how.update_from_generation_config({}, eos_token_id=None)
    hasher = get_request_block_hasher(BLOCK, sha256)
    return Request(name, list(tokens), how, None, block_hasher=hasher)


def hit(manager, asked):
    """Tokens of a request that come from the cache, and their blocks."""
    blocks, tokens, _ = manager.get_computed_blocks(asked)
    return tokens, blocks


def bring(manager, asked, tokens):
    """Schedule so many tokens of a request and have them processed; whether there were blocks."""
    cached, blocks = hit(manager, asked) if asked.num_computed_tokens == 0 else (0, None)
    got = manager.allocate_slots(asked, tokens, cached, blocks, full_sequence_must_fit=True)
    if got is not None:
        asked.num_computed_tokens += cached + tokens
    return got is not None


def prefill(manager, asked):
    """All of a prompt in pieces; the most blocks that it held at a time."""
    most = 0
    while asked.num_computed_tokens < asked.num_prompt_tokens:
        left = asked.num_prompt_tokens - asked.num_computed_tokens
        if asked.num_computed_tokens == 0:
            left -= hit(manager, asked)[0]
        assert bring(manager, asked, min(left, PIECE))
        most = max(most, held(manager, asked))
    return most


def held(manager, asked):
    ids = manager.get_block_ids(asked.request_id)[0]
    return sum(block != 0 for block in ids)


def generate(manager, asked, tokens):
    for token in range(tokens):
        asked.append_output_token_ids(1000 + token)
        assert bring(manager, asked, 1)


@pytest.mark.parametrize(
    ("method", "recomputed", "generated"),
    [
        ("dense", 0, True),
        ("quest", 64, False),
        ("sale", 0, False),
        ("chess", 0, False),
        ("quantised", 0, False),
        ("infllm", None, False),
        ("h2o", None, False),
        ("streamingllm", 0, False),
        ("snapkv(window=100)", 100, False),
        ("snapkv(window=8) + quest", 64, False),
        ("delta(full=[0, 3], leaders=[1])", 64, False),
    ],
)
def test_what_a_method_looks_at(method, recomputed, generated):
    assert hits_of(Recipe.parse(method), 4) == Hits(recomputed, generated)


def test_hits_are_as_long_as_the_method_allows():
    for hits, expected in ((Hits(0, True), 288), (SELECTIVE, 224), (Hits(None, False), 0)):
        manager = pool(spec(hits))
        first, second = request("a", range(300)), request("b", range(300))
        prefill(manager, first)
        assert hit(manager, second)[0] == expected


def test_generated_tokens_are_cached_where_they_are_as_in_a_prompt():
    for hits, expected in ((Hits(0, True), 160), (SELECTIVE, 96)):
        manager = pool(spec(hits))
        first = request("a", range(100))
        prefill(manager, first)
        generate(manager, first, 60)
        longer = request("b", [*first.all_token_ids, *range(200)])
        assert hit(manager, longer)[0] == expected


def test_a_preempted_request_is_not_cached_beyond_its_prompt():
    """Though another one's prompt has all its tokens."""
    manager = pool(spec(Hits(0, True)))
    first = request("a", range(100))
    prefill(manager, first)
    generate(manager, first, 60)
    prefill(manager, request("b", [*first.all_token_ids, *range(50)]))
    manager.free(first)
    first.num_computed_tokens = 0
    assert hit(manager, first)[0] == 96
    assert hit(manager, request("c", first.all_token_ids))[0] == 144


def test_a_mirrored_request_is_longer_than_the_pool():
    own = spec(mirrored=True)
    manager, long, short = pool(own), request("a", range(3000)), request("b", range(5000, 5040))
    most = prefill(manager, long)
    assert prefill(manager, short) == 3
    generate(manager, long, 40)
    assert own.most_blocks is not None
    assert most <= own.most_blocks < BLOCKS
    assert held(manager, long) <= 5
    assert manager.get_block_ids("a")[0][0] != 0
    manager.free(long)
    manager.free(short)
    assert manager.block_pool.get_num_free_blocks() == BLOCKS - 1


def test_blocks_that_were_given_back_are_hit_while_they_are_whole():
    manager, first = pool(spec(mirrored=True)), request("a", range(400))
    prefill(manager, first)
    again, most = request("b", range(400)), spec(mirrored=True).most_blocks
    tokens, blocks = hit(manager, again)
    assert tokens == 336
    assert all(not block.is_null for block in blocks.blocks[0])
    assert bring(manager, again, 64)
    manager.free(first)
    manager.free(again)
    # A hit never takes so much that the first piece behind it does not fit.
    prefill(manager, request("c", range(9000, 9000 + 20 * BLOCK)))
    assert hit(manager, request("d", [*range(400), *range(600)]))[0] <= (BLOCKS - 1 - most) * BLOCK


def test_a_paged_request_keeps_its_blocks():
    manager, asked = pool(spec()), request("a", range(600))
    assert prefill(manager, asked) == 38
    assert isinstance(manager.coordinator.single_type_managers[0], KeyholeManager)
    assert spec().most_blocks is None


def test_groups_are_of_layers_that_are_served_alike():
    merged = KeyholeSpec.merge([spec(), spec()])
    assert merged == spec()
    with pytest.raises(ValueError, match="served alike"):
        KeyholeSpec.merge([spec(), spec(mirrored=True)])
