"""python docs/gen/real_model.py: docs/results/real-model.md and its plot, from the rows in docs/results/real-model/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from keyhole.evaluation.divergence.plot import draw
from keyhole.evaluation.divergence.records import merge, read_rows
from keyhole.evaluation.divergence.rows import DivergenceRow

RESULTS = Path(__file__).parents[1] / "results"
BUDGETS = ("0.02", "0.05", "0.1", "0.2")
MASS = "mass=0.95"
_HEAD = """\
# A real model

SmolLM2-135M-Instruct (30 layers, 9 query and 3 KV heads of 64, trained to 8,192 tokens), weights dequantised from Q4_1, float32.
After a prefix of shipped text, the next {tokens} tokens of {texts} texts by teacher forcing: KL(full attention || method) in
nats, a mean over all tokens, with its 95% interval by bootstrap over texts; **top-1** is how often both agree on the most probable token. Every method selects
at any length here (`dense_below=0`), with its defaults; methods that need a calibrated file run without one. Made by `docs/gen/real_model.py` from the
rows beside this page (`real-model/*.json`), which hold each token's KL. To make a row again:

```
keyhole compare --model smollm2 --tasks kl --context {context} --tokens {tokens} --texts {texts} --methods pqcache --budgets 0.1
```

![KL against bytes read and held](real-model.png)
"""
_BUDGETS = """
## After {context} tokens, by budget

Full attention: perplexity {perplexity:.1f}, {read:.0f} MiB read per token, {held:.0f} MiB held. `-`: not measured.

| method | {budgets} | top-1 at 10% | read at 10% | held at 10% |
|---|{rule}---|---|---|
"""
_MASS = """
## Attention mass after {context} tokens

`mass=0.95` asks for the fewest tokens estimated to hold 95% of the softmax. **Reached** is the share of (layer, KV head, step) that hold it by exact count.

| method | reached 0.95 | exact mass | estimated | tokens read | KL |
|---|---|---|---|---|---|
"""


def page(rows: Sequence[DivergenceRow]) -> str:
    """The page of rows whose settings differ in the context only."""
    contexts = sorted({row.settings.context for row in rows})
    settings = rows[0].settings
    text = _HEAD.format(tokens=settings.tokens, texts=len(settings.texts), context=contexts[0])
    for context in contexts:
        here = [row for row in rows if row.settings.context == context and row.complete]
        text += _by_budget(here, context) + _by_mass(here, context)
    return text


def _by_budget(rows: Sequence[DivergenceRow], context: int) -> str:
    dense = next(row.summary for row in rows if row.method == "dense")
    head = _BUDGETS.format(
        context=f"{context:,}",
        perplexity=dense.perplexity_dense,
        read=dense.kv_bytes_read_per_token / 2**20,
        held=dense.kv_bytes_device / 2**20,
        budgets=" | ".join(f"{float(budget):.0%}" for budget in BUDGETS),
        rule="---|" * len(BUDGETS),
    )
    found: dict[str, dict[str, DivergenceRow]] = {}
    for row in rows:
        if row.budget in BUDGETS:
            found.setdefault(row.method, {})[row.budget] = row
    return head + "".join(_line(method, found[method]) for method in sorted(found, key=_rank(found)))


def _rank(found: dict[str, dict[str, DivergenceRow]]):
    def rank(method: str) -> float:
        row = found[method].get("0.1")
        return row.summary.kl_mean if row else float("inf")

    return rank


def _line(method: str, by_budget: dict[str, DivergenceRow]) -> str:
    cells = [_kl(by_budget[budget]) if budget in by_budget else "-" for budget in BUDGETS]
    middle = by_budget.get("0.1")
    if middle is None:
        rest = ["-"] * 3
    else:
        one = middle.summary
        rest = [f"{one.top1:.1%}", _mib(one.kv_bytes_read_per_token), _mib(one.kv_bytes_device)]
    return _row([f"`{method}`", *cells, *rest])


def _by_mass(rows: Sequence[DivergenceRow], context: int) -> str:
    found = [row for row in rows if row.budget == MASS]
    if not found:
        return ""
    lines = []
    for row in sorted(found, key=lambda row: row.summary.read_fraction):
        one = row.summary
        masses = [
            "-" if value is None else f"{value:.3f}".lstrip("0")
            for value in (one.mass_exact, one.mass_estimated)
        ]
        reached = "-" if one.mass_reached is None else f"{one.mass_reached:.1%}"
        lines.append(_row([f"`{row.method}`", reached, *masses, f"{one.read_fraction:.1%}", _kl(row)]))
    return _MASS.format(context=f"{context:,}") + "".join(lines)


def _kl(row: DivergenceRow) -> str:
    one = row.summary
    between = "" if one.kl_mean_interval is None else f" ({'-'.join(map(_short, one.kl_mean_interval))})"
    return f"{_short(one.kl_mean)}{between}"


def _short(value: float) -> str:
    return f"{value:.4f}"[1:] if value < 0.01 else f"{value:.3f}".removeprefix("0")


def _mib(count: float) -> str:
    return f"{count / 2**20:.0f} MiB"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    files = sorted((RESULTS / "real-model").glob("*.json"))
    rows = merge([read_rows(file) for file in files])
    (RESULTS / "real-model.md").write_text(page(rows), encoding="utf-8")
    least = min(row.settings.context for row in rows)
    draw([row for row in rows if row.settings.context == least and row.complete], RESULTS / "real-model.png")


if __name__ == "__main__":
    main()
