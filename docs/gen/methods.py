"""Pages on the methods, made from the methods themselves: one for each, and an overview.

`mkdocs` runs `docs/gen/build.py`, which writes them into the site.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields

from keyhole.cli.methods import answers_of
from keyhole.core.errors import SpecError
from keyhole.methods import METHODS, EvictionMethod, Method, RetrievalMethod, ScoreWrapper
from keyhole.methods.facts import Differs
from keyhole.methods.sizes import Shape, Sizes, measure, measure_storage
from keyhole.storage import KV_DTYPES, PLACES
from keyhole.storage.formats.quantised import Quantised
from keyhole.storage.resident.blocks import BLOCK

QUESTIONS = ("compute", "retain", "place", "select", "activate")
_SHAPE = Shape()
_CONTEXT, _BUDGET = 131_072, 0.1

_OVERVIEW = f"""\
# Methods

Each page is made from the code: what a method stores, reads and computes, its options, and where it differs from the paper.

## At a glance

Keys, values and index held by one KV head of one layer, and what one decode step reads of it, at {_CONTEXT:,} tokens,
D = {_SHAPE.keys}, bfloat16 and `budget={_BUDGET}`. Computed from the formulas on the pages; sorting, softmax and CPU caches are not
counted, so this is no measure of time.

{{glance}}

## Options of every method that selects

`mass`, `floor` and `cap` replace `budget`: `mass=0.95` reads the fewest tokens estimated to hold 95% of the softmax, at least
`floor` tokens and at most the fraction `cap` of the context. `delta` and `mpcache` refuse it.

{{selecting}}

## Options of every method that drops tokens

Dropped tokens are gone: a later question may need them, and cropping the cache does not bring them back. The budget counts all
tokens a head keeps. With `prompt=pieces`, each piece of a prompt, and each later question, is one more occasion to drop.

{{dropping}}

## Place and precision

Bytes of a token's keys and values for one KV head, held on the tier and read from it:

{{places}}

- **device**: memory of the device the model runs on.
- **host**: pinned host memory if the model runs on a GPU. New tokens are copied asynchronously; a step gathers what it reads on
  the host and copies it back. For a model on a CPU, host and device are the same memory.
- **disk**: a file in a temporary directory, removed with the cache, read through a memory map. Each block of {BLOCK} tokens
  has a checksum.
- **int8, int4**: asymmetric quantisation, keys per channel of {Quantised.group} tokens, values per token (KIVI, arXiv 2402.02750).
  The newest {Quantised.group} to {2 * Quantised.group - 1} tokens stay unquantised on the device.
- **block_cache=BYTES**: blocks of {BLOCK} tokens that stay on the device in front of host or disk, shared evenly among layers.
  A block is fetched after the read that missed it. `block_eviction` is `lfu` or `lru`.

The index always stays on the device. All methods but {{refusing}} take `kv_dtype=int8|int4`. Prompts, steps below `dense_below`,
and `oracle` and `tokenselect` in every step, read the keys of the whole context from the tier.
"""

_LEGEND = """\
Formulas are for one KV head of one layer and one batch row, in bytes and multiplications. N: tokens indexed, all before the
window. R: tokens read (sinks, window and budget; all that is kept where tokens are dropped). D, Dv: size of a key and a value.
e: bytes per element. G: query heads per KV head. Options appear by name.
"""


def pages(*, measured: bool = True) -> dict[str, str]:
    """The Markdown of every page, by its path in the site.

    Args:
        measured: fill layers with random tokens and measure what they hold and read, which takes a minute.
    """
    # Those that need a file of yours are not measured.
    given = {name: kind() for name, kind in METHODS.items() if measured and not kind.required}
    sizes = {name: measure(method, _SHAPE) for name, method in given.items()}
    found = {f"methods/{name}.md": _page(kind, sizes.get(name)) for name, kind in METHODS.items()}
    return found | {"methods/index.md": _overview(sizes)}


def _overview(sizes: Mapping[str, Sizes]) -> str:
    selecting, dropping = (
        _table(("option", "default", "meaning"), _common_rows(base))
        for base in (RetrievalMethod, EvictionMethod)
    )
    columns = ("method", "held, MiB", "index, MiB", "index read, MiB", "KV read, MiB", "read, of dense")
    refusing = [
        f"`{k.name}`" for k in METHODS.values() if issubclass(k, RetrievalMethod) and _refuses_forms(k)
    ]
    return _OVERVIEW.format(
        glance=_table(columns, (_glance(METHODS[name], sizes) for name in sizes)),
        selecting=selecting,
        dropping=dropping,
        places=places() if sizes else "",
        refusing=", ".join(refusing),
    )


def _page(kind: type[Method], sizes: Sizes | None) -> str:
    facts = kind.facts
    answers = [_row(question, answer) for question, answer in zip(QUESTIONS, answers_of(kind), strict=True)]
    lines = [
        f"# {kind.name}",
        "",
        f"*{kind.paper}*: {kind.summary}.",
        "",
        *_prose(kind),
        _table(("question", "answer"), answers),
        _table(
            ("in short", ""),
            (
                _row("**stored**", facts.stored),
                _row("**a decode step**", facts.select),
                _row("**use it for**", facts.best_for),
                _row("**weak at**", facts.weak_at),
            ),
        ),
        "## Cost",
        "",
        _table(("", "formula", "measured"), _costs(kind, sizes)),
        _LEGEND,
        facts.letters,
        "",
    ]
    options = list(_options(kind))
    if options:
        lines += ["## Options", "", _table(("option", "default", "published", "meaning"), options)]
    if issubclass(kind, (RetrievalMethod, EvictionMethod)):
        lines += ["Options that all such methods share: [overview](index.md).", ""]
    return "\n".join(lines)


def _costs(kind: type[Method], sizes: Sizes | None) -> list[str]:
    facts = kind.facts
    computing = " + ".join(part for part in (facts.products, "G * R * (D + Dv)") if part != "0")
    blank = ("",) * 4
    kept, index, scan, row = (
        blank
        if sizes is None
        else (
            _number(sizes.kept),
            _number(sizes.index),
            _a_token(sizes.scan) + _besides(sizes.once),
            f"{_number(sizes.row)} per token read",
        )
    )
    return [
        _row("keys and values held per token", _bytes(facts.kept), kept),
        _row("index held per token", _bytes(facts.index), index),
        _row("index bytes read per step", _bytes(facts.scan), scan),
        _row("KV bytes read per step", f"`R * ({facts.row})`", row),
        _row("multiplications per step", f"`{computing}`", ""),
    ]


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
        return "same"
    return (
        f"{differs.published}; {differs.why}"
        if differs.published != "-"
        else f"not in the paper; {differs.why}"
    )


def _common_rows(base: type[Method]) -> Iterator[str]:
    texts = _attributes(base)
    return (_row(f"`{field.name}`", _default(field), texts[field.name]) for field in fields(base))


def _attributes(kind: type[Method]) -> dict[str, str]:
    """What each option of a method does."""
    return {name: option.help for name, (option, _) in kind.options().items()}


def _prose(kind: type[Method]) -> Iterator[str]:
    """The docstring up to the attributes, each paragraph followed by an empty line."""
    text, _, _ = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    for paragraph in text.strip().split("\n\n"):
        yield " ".join(paragraph.split())
        yield ""


def _glance(kind: type[Method], sizes: Mapping[str, Sizes]) -> str:
    own, dense = sizes[kind.name], sizes["dense"].row * _CONTEXT
    kept, select, attend = _CONTEXT, 0.0, own.row * _CONTEXT
    if issubclass(kind, RetrievalMethod):
        select = own.scan * (_CONTEXT - kind.window) + own.once
        attend = own.row * (kind.sinks + kind.window + round(_BUDGET * _CONTEXT))
    if issubclass(kind, EvictionMethod | ScoreWrapper):
        kept = round(_BUDGET * _CONTEXT)
        attend = own.row * kept
    name = f"[{kind.name}]({kind.name}.md)" + (", a follower" if kind.name == "delta" else "")
    index = own.index * kept
    numbers = (f"{part / 2**20:.2f}" for part in (own.kept * kept + index, index, select, attend))
    return _row(name, *numbers, f"{(select + attend) / dense:.1%}")


def places() -> str:
    """Bytes of a row on each place in each form, with the formula of the form."""
    rows = (
        _row(place, *(_number(measure_storage(place, dtype, _SHAPE).row) for dtype in KV_DTYPES))
        for place in PLACES
    )
    formulas = _row("formula", *(f"`{formula(dtype)}`" for dtype in KV_DTYPES))
    return _table(("place", *(f"kv_dtype={dtype}" for dtype in KV_DTYPES)), (*rows, formulas)).rstrip("\n")


def formula(dtype: str) -> str:
    """Bytes of a row in one form."""
    if dtype == "auto":
        return "(D + Dv) * e"
    return f"(D + Dv) * {dtype.removeprefix('int')} / 8 + D / 8 + 8"


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
    return f"{_number(value)} per token" if value else "0"


def _besides(once: float) -> str:
    return f", and {_number(once)} once" if once else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(heads: Iterable[str], rows: Iterable[str]) -> str:
    heads = tuple(heads)
    return "\n".join([_row(*heads), "|" + "---|" * len(heads), *rows]) + "\n"
