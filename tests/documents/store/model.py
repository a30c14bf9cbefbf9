"""A store as the text of its contract says it: which entries there are, who needs them, what goes first."""

from dataclasses import dataclass, field

from keyhole.documents.store import BLOCK, block_keys
from tests.documents.store.synthetic import FINGERPRINT


@dataclass
class Item:
    parent: str
    nbytes: int
    seconds: float
    frequency: int
    clock: float
    tokens: int
    used: int
    note: bool = False

    @property
    def worth(self):
        return self.clock + self.frequency * self.seconds / self.nbytes


@dataclass
class Text:
    ids: tuple
    stored: int
    pinned: bool = False

    @property
    def keys(self):
        return block_keys(self.ids, FINGERPRINT)

    @property
    def path(self):
        """Keys of what is stored of it."""
        return self.keys[: -(-self.stored // BLOCK)]

    @property
    def finished(self):
        return self.stored == len(self.ids)


@dataclass
class Model:
    items: dict = field(default_factory=dict)
    texts: list = field(default_factory=list)  # [name, Text]
    clock: float = 0.0
    evictions: int = 0
    time: int = 0
    in_use: list = field(default_factory=list)  # paths of keys
    written: object = None  # the text that is being added

    def touch(self, keys):
        self.time += 1
        for key in keys:
            item = self.items[key]
            item.frequency, item.clock, item.used = item.frequency + 1, self.clock, self.time

    def put(self, key, parent, nbytes, seconds, tokens, note=False):
        self.time += 1
        self.items[key] = Item(parent, nbytes, seconds, 1, self.clock, tokens, self.time, note)

    def opened(self, path):
        self.touch(self.with_indexes([path]))

    def is_index(self, key, tail):
        return self.items[key].parent == tail and not self.items[key].tokens

    def with_indexes(self, paths):
        keys = {key for path in paths for key in path}
        tails = {path[-1] for path in paths if path}
        return keys | {key for key in self.items if any(self.is_index(key, tail) for tail in tails)}

    def kept(self, *more):
        return self.with_indexes([*(text.path for _, text in self.texts if text.pinned), *self.in_use, *more])

    def garbage(self, *more):
        return set(self.items) - self.with_indexes(
            [*(text.path for _, text in self.texts), *self.in_use, *more]
        )

    def order(self, kept):
        """What is evicted, in order, with the clock after each."""
        left, clock, found = dict(self.items), self.clock, []
        while True:
            leaves = [
                (item.worth, item.used, key)
                for key, item in left.items()
                if not (item.note or key in kept)
                and not any(other.parent == key and not other.note for other in left.values())
            ]
            if not leaves:
                return found
            worth, _, key = min(leaves)
            clock = max(clock, worth)
            gone = [key, *(other for other, item in left.items() if item.note and item.parent == key)]
            found += [(each, clock) for each in gone]
            for each in gone:
                del left[each]

    def evicted(self, gone):
        """Check that what is gone is garbage, and then the first ones of the order; forget it."""
        for key in gone & self.garbage():
            del self.items[key]
        rest = gone & set(self.items)
        if rest:
            assert not self.garbage()
            first = self.order(self.kept())[: len(rest)]
            assert {key for key, _ in first} == rest
            self.clock = first[-1][1]
            self.evictions += len(rest)
        for key in rest:
            del self.items[key]
        for _, text in self.texts:
            text.stored = sum(self.items[key].tokens for key in text.path if key in self.items)
        self.texts = [[name, text] for name, text in self.texts if text.stored or text is self.written]
