"""Lists of what sparse prompts read against the maps they come from."""

import pytest
import torch

pytest.importorskip("triton")

from keyhole.kernels import Reach
from keyhole.kernels.sale.tiles import BLOCK, ROWS, tiles, unpack
from keyhole.kernels.sale.triton import lists as sale_lists
from keyhole.kernels.sale.triton.tiles import Prompt

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
QUERIES, TOKENS = 150, 400


def drawn(*shape):
    """Words of which some have all bits, many few or none."""
    make = torch.Generator().manual_seed(shape[2])
    words = torch.randint(-(2**31), 2**31, (5, *shape), generator=make)
    for number, each in enumerate(words[1:], 1):
        words[0] &= torch.where(torch.randint(3, shape, generator=make) < number, each, -1)
    words[0][torch.randint(4, shape, generator=make) == 0] = 0
    words[0][..., 5::7] = -1
    return words[0].to(torch.int32)


def listed(found, head, tile, parts, means):
    """Who reads each key, bool [parts, N], by the lists; each key is named once."""
    many, few, none = found.counts[0, head, tile].tolist()
    bits = torch.arange(parts)
    reads, blocks = torch.zeros(TOKENS // BLOCK * BLOCK, parts, dtype=torch.bool), []
    for block, words in zip(
        found.many[0, head, tile, :many], found.readers[0, head, tile, :many], strict=True
    ):
        who = (words.repeat_interleave(8) >> torch.arange(0, 32, 4).repeat(4)).unsqueeze(-1) >> bits & 1
        reads[block * BLOCK : (block + 1) * BLOCK] = who.bool()
        assert int(who.any(-1).sum()) > 8 - means
        blocks.append(int(block))
    for entries in found.few[0, head, tile, :few].tolist():
        keys = [entry for entry in entries[means:] if entry >= 0]
        place = [key // 16 // BLOCK for key in keys]
        assert len(set(place)) == 1
        assert not means or entries[0] == place[0] * BLOCK * 16
        for key in keys:
            assert not reads[key // 16].any()
            reads[key // 16] = key >> bits & 1 != 0
        blocks.append(place[0])
    blocks += found.none[0, head, tile, :none].tolist()
    return reads.T, sorted(blocks)


@pytest.mark.parametrize(("rows", "means"), [(16, True), (16, False), (32, True), (64, False)])
def test_lists_name_every_block_and_what_is_read_of_it(monkeypatch, rows, means):
    monkeypatch.setattr(sale_lists, "_WORDS", 4)
    reach, parts = Reach(sinks=3, window=10, rows=rows, means=means), ROWS // rows
    operands = (torch.zeros(1, 2, count, 16, device=DEVICE) for count in (QUERIES, TOKENS, TOKENS))
    prompt = Prompt(*operands, torch.zeros(2), 1.0, reach, torch.zeros(1, dtype=torch.int32, device=DEVICE))
    words = drawn(1, 2, 3 * parts, -(-TOKENS // BLOCK)).to(DEVICE)
    kept = words.new_empty(words.shape[:3])
    found = sale_lists.Lists(*(part.cpu() for part in sale_lists.lists(prompt, words, kept, 0)))
    expected = unpack(words.cpu(), TOKENS)
    assert torch.equal(kept.cpu(), expected.sum(-1).int())
    for number, tile in enumerate(tiles(QUERIES, TOKENS, 0, reach)):
        for head in range(2):
            groups = expected[0, head, number * parts : (number + 1) * parts, : tile.end]
            assert bool(groups[0, :32].all())
            reads, blocks = listed(found, head, number, parts, means)
            assert torch.equal(reads[:, : tile.end], groups)
            assert blocks == list(range(tile.end // BLOCK))
