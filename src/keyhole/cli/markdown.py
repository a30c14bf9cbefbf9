"""docs/methods.md: what each method stores, reads and computes, from the methods themselves."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields

from keyhole.core.errors import SpecError
from keyhole.methods import METHODS, EvictionMethod, Method, RetrievalMethod
from keyhole.methods.facts import Differs
from keyhole.methods.sizes import Shape, Sizes, measure, measure_storage
from keyhole.storage import KV_DTYPES, PLACES
from keyhole.storage.formats.quantised import Quantised
from keyhole.storage.resident.blocks import BLOCK

COMMAND = "keyhole methods --markdown > docs/methods.md"
FORMS = {
    "auto": "(D + Dv) * e",
    "int8": "D + Dv + D / 8 + 8",
    "int4": "(D + Dv) / 2 + D / 8 + 8",
}
_SHAPE, _WIDTH = Shape(), 120
_CONTEXT, _BUDGET = 131_072, 0.1

_INTRODUCTION = f"""\
# Methods

Made by `{COMMAND}`; a test compares. Sizes are measured on a layer that holds random tokens, at D = Dv =
{_SHAPE.keys}, bfloat16 and {_SHAPE.kv_heads} KV heads; spare capacity of growing buffers is not counted.
Formulas and sizes are for one KV head of one layer and one batch row, in bytes and in multiplications;
lower-order terms are left out.

| letter | |
|---|---|
| N | tokens indexed: all before the window |
| R | tokens read: sinks, window, and what the budget allows; all that is kept where tokens are dropped |
| D, Dv | size of a key and of a value |
| e | bytes of one of their numbers |
| Hkv, G | KV heads, and query heads of each |

Options go by their names. The published defaults are those of the paper or, where it names none, of its
released code. Measured accuracy is in [LOG.md](LOG.md), measured times are in
[benchmarks.md](benchmarks.md).
"""

_GLANCE = f"""\
## At a glance

What is held, keys and values and index, and what one step reads of it, at a context of {_CONTEXT:,} tokens
with `budget={_BUDGET}`, by the formulas below. Sorting, softmax and what lies in the processor's cache are
not in it, so it is no measure of time.
"""

_SHARED = """\
## Options of every method that selects

`mass`, `floor` and `cap` stand in place of `budget`: `mass=0.95` reads the fewest tokens that are estimated
to hold 95% of the softmax, but at least `floor` and at most the share `cap` of the context.

Selecting pays from some length on. `dense_below="auto"` measures it for the method, the sizes of the
model's heads and the machine when a model is first served, and keeps the answer; `keyhole bench calibrate`
shows it, and measures it for steps of several sequences (`--batch`). Not measured, since one layer does not
show it: {known}.

Every method can be put on every tier, and every one but {refusing} into every form, that are listed at the
end.
"""

_DROPPING = """\
## Options of every method that drops tokens

What is dropped is gone: a later question may need it, and cropping a cache finds only what is left. The
budget counts all that is kept for a head. Scores are those of the prompt at its end, the question included.
"""

_PLACES = f"""\
## Where keys and values lie

Bytes of a token's keys and values for one KV head, on the tier and read from it.

{{table}}

- **device**: the memory of the device that the model computes on. In full precision it is read in place.
- **host**: pinned memory, where the model computes on a GPU: tokens go there by copies that nobody waits
  for, and what a step reads is gathered there and copied back. For a model on a CPU, host and device are
  the same memory.
- **disk**: a file in a private directory under `TMPDIR`, which goes when the cache does. It is read through
  a memory map of which a bounded part stays in memory. Each block of {BLOCK} tokens has a checksum, looked
  at when the block is first read; a damaged or truncated file is an error that names it. Reordering beams
  writes the file anew.
- **int8, int4**: keys get a range for each channel of {Quantised.group} tokens, values one for each token
  (KIVI, arXiv 2402.02750). The newest {Quantised.group} to {2 * Quantised.group - 1} tokens stay as they
  are, on the device. An error of a number is at most half a step of its range; a full budget is dense
  attention over what is stored.
- **block_cache=BYTES**: blocks of {BLOCK} tokens, all heads of them, that stay on the device in front of host
  or disk. The bytes are shared out evenly to the layers; each needs room for a block. A block is fetched
  after the read that missed it, so it serves the next ones. `block_eviction` says which goes: the one read
  least often, or least recently. Hits and misses are counted with what was read.

The index stays on the device in every case. Prompts, steps below `dense_below` and layers that are read
whole read all of the tier. So do `oracle` and `tokenselect` in every step for the keys they score: those gain
memory from a slower tier, not time. The layers of `full` in `delta` stay on the device.
"""


def methods_markdown() -> str:
    """The page, as Markdown."""
    sizes = {name: measure(kind(), _SHAPE) for name, kind in METHODS.items()}
    retrieving = [kind for kind in METHODS.values() if issubclass(kind, RetrievalMethod)]
    shared, dropping = (
        _table(("option", "default", "meaning"), _common_rows(base))
        for base in (RetrievalMethod, EvictionMethod)
    )
    known = ", ".join(f"{kind.pays_from} tokens for `{kind.name}`" for kind in retrieving if kind.pays_from)
    refusing = ", ".join(f"`{kind.name}`" for kind in retrieving if _refuses_forms(kind))
    parts = [
        _INTRODUCTION,
        _GLANCE,
        _table(
            ("method", "held, MiB", "of it index", "to select, MiB", "to attend, MiB", "read, of dense"),
            (_glance(kind, sizes) for kind in METHODS.values()),
        ),
        _SHARED.format(refusing=refusing, known=known),
        shared,
        _DROPPING,
        dropping,
        *(_section(kind, sizes[name]) for name, kind in METHODS.items()),
        _PLACES.format(table=_places()),
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _section(kind: type[Method], sizes: Sizes) -> str:
    from keyhole.cli.methods import answers_of

    facts = kind.facts
    selecting = (_bytes(facts.scan), _a_token(sizes.scan) + _besides(sizes.once))
    attending = f"`R * ({facts.row})`", f"{_number(sizes.row)} a token read"
    computing = " + ".join(part for part in (facts.products, "G * R * (D + Dv)") if part != "0")
    costs = [
        _row("keys and values held for a token", _bytes(facts.kept), _number(sizes.kept)),
        _row("index held for a token", _bytes(facts.index), _number(sizes.index)),
        _row("bytes read to select", *selecting),
        _row("bytes read to attend", *attending),
        _row("multiplications", f"`{computing}`", ""),
    ]
    answers = zip(("compute", "retain", "place", "select", "activate"), answers_of(kind), strict=True)
    lines = [
        f"## {kind.name}",
        "",
        *_prose(kind),
        _wrapped("- **Answers**: " + ", ".join(f"{question} {answer}" for question, answer in answers) + "."),
        _wrapped(f"- **Stored**: {facts.stored}"),
        _wrapped(f"- **A step**: {facts.select}"),
        _wrapped(f"- **Use it for**: {facts.best_for}"),
        _wrapped(f"- **Bad at**: {facts.weak_at}"),
        "",
        _table(("", "formula", "measured"), costs),
        *([_wrapped(facts.letters), ""] if facts.letters else []),
    ]
    options = list(_options(kind))
    if options:
        lines.append(_table(("option", "default", "published", "meaning"), options))
    return "\n".join(lines)


def _options(kind: type[Method]) -> Iterator[str]:
    """Rows for the options of a method that are its own, or that differ in its default or from the paper."""
    base = next((base for base in (RetrievalMethod, EvictionMethod) if issubclass(kind, base)), Method)
    common = {field.name: field for field in fields(base)}
    meanings = _attributes(kind)
    differing = {differs.option: differs for differs in kind.facts.differs}
    for field in fields(kind):
        own = field.name not in common or field.default != common[field.name].default
        if own or field.name in differing:
            published = _published(differing.get(field.name))
            yield _row(f"`{field.name}`", _default(field), published, meanings[field.name])


def _published(differs: Differs | None) -> str:
    if differs is None:
        return "the same"
    return (
        f"{differs.published}; {differs.why}"
        if differs.published != "-"
        else f"no such option; {differs.why}"
    )


def _common_rows(base: type[Method]) -> Iterator[str]:
    texts = _attributes(base)
    return (_row(f"`{field.name}`", _default(field), texts[field.name]) for field in fields(base))


def _attributes(kind: type[Method]) -> dict[str, str]:
    """What each option of a method does."""
    return {name: option.help for name, (option, _) in kind.options().items()}


def _prose(kind: type[Method]) -> Iterator[str]:
    """What a method is, and its docstring up to the attributes, each paragraph followed by an empty line."""
    text, _, _ = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    for paragraph in f"{kind.paper}: {kind.summary}. {text.strip()}".split("\n\n"):
        yield _wrapped(paragraph)
        yield ""


def _wrapped(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    lines = textwrap.wrap(
        text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines)


def _glance(kind: type[Method], sizes: Mapping[str, Sizes]) -> str:
    own, dense = sizes[kind.name], sizes["dense"].row * _CONTEXT
    kept, select, attend = _CONTEXT, 0.0, dense
    if issubclass(kind, RetrievalMethod):
        select = own.scan * (_CONTEXT - kind.window) + own.once
        attend = own.row * (kind.sinks + kind.window + round(_BUDGET * _CONTEXT))
    if issubclass(kind, EvictionMethod):
        kept = round(_BUDGET * _CONTEXT)
        attend = own.row * kept
    name = f"[{kind.name}](#{kind.name})" + (", a follower" if kind.name == "delta" else "")
    index = own.index * kept
    numbers = (f"{part / 2**20:.2f}" for part in (own.kept * kept + index, index, select, attend))
    return _row(name, *numbers, f"{(select + attend) / dense:.1%}")


def _places() -> str:
    rows = (
        _row(place, *(_number(measure_storage(place, dtype, _SHAPE).row) for dtype in KV_DTYPES))
        for place in PLACES
    )
    formulas = _row("formula", *(f"`{FORMS[dtype]}`" for dtype in KV_DTYPES))
    return _table(("place", *(f"kv_dtype={dtype}" for dtype in KV_DTYPES)), (*rows, formulas)).rstrip("\n")


def _refuses_forms(kind: type[RetrievalMethod]) -> bool:
    try:
        kind(kv_dtype="int8")
    except SpecError:
        return True
    return False


def _default(field: Field) -> str:
    return f"`{field.default}`"


def _bytes(formula: str) -> str:
    return "none" if formula == "0" else f"`{formula}`"


def _a_token(value: float) -> str:
    return f"{_number(value)} a token" if value else "0"


def _besides(once: float) -> str:
    return f", and {_number(once)} besides" if once else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(heads: Iterable[str], rows: Iterable[str]) -> str:
    heads = tuple(heads)
    return "\n".join([_row(*heads), "|" + "---|" * len(heads), *rows]) + "\n"
