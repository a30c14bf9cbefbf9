"""An engine that is played: pages, block tables and schedules as vLLM has them, without vLLM."""

from typing import NamedTuple

import torch

from keyhole.attention import Logits
from keyhole.engines.vllm.requests import ServedRequests
from keyhole.engines.vllm.rows import Row
from keyhole.methods import Recipe
from keyhole.storage import split_pages

LAYERS, HEADS, GROUP, SIZE, BLOCK = 4, 2, 2, 16, 8
LOGITS = Logits(SIZE**-0.5)


class Text:
    """A request's tokens: what a model would make of them in each layer."""

    def __init__(self, name, prompt, generated, seed):
        self.name, self.prompt, self.length = name, prompt, prompt + generated
        random = torch.Generator().manual_seed(seed)

        def draw(heads):
            return torch.randn(LAYERS, self.length, heads, SIZE, generator=random)

        self.query, self.key, self.value = 3 * draw(HEADS * GROUP), draw(HEADS), draw(HEADS)


class Answer(NamedTuple):
    """What came of a text: `out [L, T, H, D]`, and what each step of each layer selected."""

    out: torch.Tensor
    selected: list


def _by_head(tokens):
    return tokens.transpose(0, 1).unsqueeze(0)


def picks(observation):
    """What a step read beside sinks and window, for each KV head."""
    selection = observation.read.selection
    return [
        sorted(slots[:count].tolist())
        for slots, count in zip(selection.slots[0], selection.counts[0].tolist(), strict=True)
    ]


def alone(recipe, text):
    """The answer of plain layer caches: the prompt in one call, then step by step through all layers."""
    layers, selected = Recipe.parse(recipe).layers(LAYERS), [[] for _ in range(LAYERS)]
    out = torch.empty_like(text.query)
    for place, layer in enumerate(layers):
        layer.observe(lambda seen, place=place: selected[place].append(picks(seen)))
    calls = [(0, text.prompt), *((t, t + 1) for t in range(text.prompt, text.length))]
    for begin, end in calls:
        for place, layer in enumerate(layers):
            layer.arrive(end - begin, lambda begin=begin: begin >= text.prompt)
            layer.append(*(_by_head(part[place, begin:end]) for part in (text.key, text.value)))
            attended = layer.attend(_by_head(text.query[place, begin:end]), LOGITS)
            out[place, begin:end] = attended[0].transpose(0, 1)
    return Answer(out, selected), layers


class Engine:
    """Schedules texts as told, in blocks given out at random and poisoned when they come back."""

    def __init__(self, recipe, texts, *, mirrored, blocks=200, seed=0):
        self.served = ServedRequests(Recipe.parse(recipe), LAYERS, mirrored=mirrored)
        self.texts = {text.name: text for text in texts}
        self.pages = torch.full((LAYERS, blocks, HEADS, BLOCK, 2 * SIZE), torch.nan)
        self.free = (1 + torch.randperm(blocks - 1, generator=torch.Generator().manual_seed(seed))).tolist()
        self.tables = {name: [] for name in self.texts}
        self.done = dict.fromkeys(self.texts, 0)
        self.first = dict.fromkeys(self.texts, 0)  # tokens that came out of a prefix cache
        self.out = {text.name: torch.full_like(text.query, torch.nan) for text in texts}
        self.selected = {name: [] for name in self.texts}
        self.gone = set()

    def step(self, plan):
        """Bring so many new tokens of each text that `plan` names."""
        rows, start = [], 0
        for name, count in plan.items():
            begin = self.done[name]
            self._allocate(name, begin + count)
            table = torch.tensor(self.tables[name] + [0] * 3, dtype=torch.int32)
            rows.append(Row(name, begin, count, start, self.texts[name].prompt, table))
            start += count
        self.served.begin_step(rows, self.gone)
        self.gone = set()
        for row in rows:
            self._watch(row)
        for layer in range(LAYERS):
            self._run(layer, rows)
        for row in rows:
            self.done[row.request] = row.end
            if self.served.mirrored:
                self._give_back(row.request, range(1, row.end // BLOCK - 1))

    def _run(self, layer, rows):
        # Padding behind the rows, as engines have it, is never to be looked at.
        fresh = [
            torch.cat([*(getattr(self.texts[r.request], part)[layer, r.begin : r.end] for r in rows), noise])
            for part, noise in (
                (part, torch.full((3, getattr(self.texts[rows[0].request], part).shape[2], SIZE), torch.nan))
                for part in ("query", "key", "value")
            )
        ]
        for row in rows:
            self._write(layer, row.request, row.begin, row.end)
        out = torch.full_like(fresh[0], torch.nan)
        self.served.attend(layer, *fresh, split_pages(self.pages[layer], SIZE), LOGITS, out)
        for row in rows:
            self.out[row.request][layer, row.begin : row.end] = out[row.start : row.start + row.count]

    def _write(self, layer, name, begin, end):
        text, slots = self.texts[name], torch.arange(begin, end)
        blocks = torch.tensor(self.tables[name], dtype=torch.long)[slots // BLOCK]
        both = torch.cat([text.key[layer, begin:end], text.value[layer, begin:end]], -1)
        self.pages[layer, blocks, :, slots % BLOCK] = both

    def _watch(self, row):
        """See what the layers of a request select from its beginning on."""
        layers = self.served._served[row.request].layers
        if layers[0]._observers:
            return
        self.selected[row.request] = selected = [[] for _ in layers]
        for place, layer in enumerate(layers):
            layer.observe(lambda seen, place=place: selected[place].append(picks(seen)))

    def _allocate(self, name, tokens):
        while len(self.tables[name]) * BLOCK < tokens:
            self.tables[name].append(self.free.pop())

    def _give_back(self, name, places):
        for place in places:
            block = self.tables[name][place]
            if block:
                self.pages[:, block] = torch.nan
                self.free.insert(0, block)
                self.tables[name][place] = 0

    def preempt(self, name, hit=0):
        """Take a text's blocks; it begins again behind `hit` blocks of its prompt, from a prefix cache."""
        self.leave(name)
        self.begin(name, hit)

    def begin(self, name, hit):
        """Let a text begin behind so many blocks that another request has left in the cache."""
        hit = min(hit, max(self.texts[name].prompt - 64, 0) // BLOCK)
        self._allocate(name, hit * BLOCK)
        for layer in range(LAYERS):
            self._write(layer, name, 0, hit * BLOCK)
        self.done[name] = self.first[name] = hit * BLOCK

    def leave(self, name):
        """Take a text's blocks."""
        self._give_back(name, range(len(self.tables[name])))
        self.tables[name], self.done[name] = [], 0
        self.gone.add(name)

    def answer(self, name):
        return Answer(self.out[name], self.selected[name])
