"""Keys, values and queries that make sampling hard: `[1, H, N, D]` twice, and `[steps, 1, G * H, D]`."""

import torch

HEADS, GROUPS, SIZE = 2, 2, 32


class Made:
    """Text at random, before it is made hard."""

    def __init__(self, tokens, steps, seed):
        self.random = torch.Generator().manual_seed(seed)
        self.tokens = tokens
        self.keys, self.queries = self.draw(tokens, SIZE), 1.5 * self.draw(steps, SIZE, heads=HEADS * GROUPS)
        self.queries = self.queries.permute(2, 0, 1, 3).clone()
        self.values = self.draw(tokens, SIZE) + 0.5 * self.draw(1, SIZE)

    def draw(self, *shape, heads=HEADS):
        return torch.randn(1, heads, *shape, generator=self.random)

    def student(self, freedom):
        """Vectors whose lengths have heavy tails."""
        squares = torch.stack([self.draw(self.tokens, 1) for _ in range(freedom)]).square().mean(0)
        return self.draw(self.tokens, SIZE) / squares.sqrt()


def plain(_):
    pass


def flat(made):
    made.queries = 0.1 * made.queries


def duplicates(made):
    made.keys = made.draw(8, SIZE)[:, :, torch.randint(8, (made.tokens,), generator=made.random)]


def one_key(made):
    made.keys = made.keys[:, :, :1].expand(-1, -1, made.tokens, -1).clone()


def dominant(made):
    place = made.tokens // 3
    made.keys[:, :, place] *= 4
    made.queries[1::2] += 2 * made.keys[:, :, place].repeat_interleave(GROUPS, 1)


def few_large(made):
    made.keys[:, :, torch.randperm(made.tokens, generator=made.random)[: made.tokens // 100]] *= 5


def heavy_keys(made):
    made.keys = made.student(2)


def cauchy_keys(made):
    made.keys = made.student(1)


def heavy_values(made):
    made.values = made.student(2) + 0.5


def cauchy_values(made):
    made.values = made.student(1) + 0.5


KINDS = {
    kind.__name__: kind
    for kind in (
        *(plain, flat, duplicates, one_key, dominant, few_large),
        *(heavy_keys, cauchy_keys, heavy_values, cauchy_values),
    )
}


def text(kind, tokens, steps, seed):
    made = Made(tokens, steps, seed)
    KINDS[kind](made)
    return made.keys, made.values, made.queries
