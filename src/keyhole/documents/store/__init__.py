"""A store of what a model made of documents: blocks of keys and values found by content, shared by processes.

It knows token ids, opaque fingerprints and named tensors; no model, no method, no command line.

Entries. Everything that is stored is an *entry*: named tensors and JSON facts in one file. Entries form a
tree. A **block** holds up to `BLOCK` tokens and its parent is the block before it; an **index** holds what a
method derived from a whole document and its parent is the document's last block; a **note**, likewise, what
cannot be made from the blocks again, and goes with that block; a **state** holds the whole state of a method
that drops tokens, and has no parent. A **document** is a name, token ids and the entry its
tokens end at.

Keys. A block's key is a hash over the key of its parent (for the first one: the fingerprint) and its token
ids, so documents that begin alike share entries. The fingerprint is the caller's text for whatever else the
tensors depend on: weights, dtype, rotation, form, version of the form. Index and state keys: see `keys`.

Directory, 0700:

    lock                held by whoever changes something (flock, so it ends with its process)
    store.sqlite        metadata (WAL)
    blocks/xx/KEY.safetensors   entries; xx are the first digits of KEY; so in indexes/, notes/, states/
    leases/KEY-RANDOM   locked by who reads or adds the entries from KEY to its root
    writers/HASH        locked by who adds under a name, or adds this content

File of an entry: a valid safetensors file in which every tensor starts at a multiple of 4096 bytes.

    8 bytes      length of the header, little-endian
    header       JSON, filled with spaces to a multiple of 4096; `__metadata__.keyhole` says format, kind,
                 key, parent, token ids, facts
    `~sums`      U32, a checksum for each 4096 bytes of what follows, filled up with zeros to 4096
    tensors      by name, each filled up to 4096 bytes by a U8 tensor `~pad.N` of zeros

The digest of header and sums is in SQLite. They are verified when an entry is first used by a process, each
4096 bytes of a tensor when they are first read by it: a page of the page cache, so verifying reads nothing
from the disk that reading a row does not. Files are written under a temporary name, synced, renamed, then
recorded; they are removed after their record. Every record is sealed, and so is the set of all records.

Eviction. Under `quota` bytes, which count every file and directory of the store, garbage and expired
documents go first, then leaves of the tree in the order of GDSF: `clock + frequency * seconds / bytes`
(`eviction`). Entries of pinned documents, and of those in use (leased), stay. A document that loses its last
block is unfinished, as if its reading had been interrupted there.

Not a goal: network file systems (flock and SQLite's WAL want a local one), protection from somebody who can
write to the directory.
"""

from keyhole.documents.store.beginning import check_ttl
from keyhole.documents.store.entry import Entry, Location
from keyhole.documents.store.keys import BLOCK, block_keys
from keyhole.documents.store.leases import Match, OpenDocument
from keyhole.documents.store.reading import unknown
from keyhole.documents.store.records import Document
from keyhole.documents.store.sizes import Stats
from keyhole.documents.store.store import Store
from keyhole.documents.store.upkeep import Collected, Damage, Report
from keyhole.documents.store.writer import Writer

__all__ = [
    "BLOCK",
    "Collected",
    "Damage",
    "Document",
    "Entry",
    "Location",
    "Match",
    "OpenDocument",
    "Report",
    "Stats",
    "Store",
    "Writer",
    "block_keys",
    "check_ttl",
    "unknown",
]
