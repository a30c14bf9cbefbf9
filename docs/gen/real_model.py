"""python docs/gen/real_model.py: docs/results/real-model.md and its plot, from the rows in docs/results/real-model/."""

from __future__ import annotations

from collections import Counter
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
After a prefix of shipped text, the next {tokens} tokens of each text by teacher forcing: KL(full attention || method) in
nats, a mean over all tokens, with its 95% interval by bootstrap over texts; **top-1** is how often both agree on the most probable token. Every method selects
at any length here (`dense_below=0`), with its defaults. `a2ats` and `chess` are also measured with what `keyhole calibrate` makes by default, `sale` computes the prompt only. Made by `docs/gen/real_model.py` from the
rows beside this page (`real-model/*.json`), which hold each token's KL. To make a row again:

```
keyhole compare --model smollm2 --tasks kl --context {context} --tokens {tokens} --methods pqcache --budgets 0.1
```

![KL against bytes read and held](real-model.png)
"""
_BUDGETS = """
## After {context} tokens of {texts} texts

Full attention: perplexity {perplexity:.1f}, {read:.0f} MiB read per token, {held:.0f} MiB held. `-`: not measured.

| method | {budgets} | top-1 at 10% | read at 10% | held at 10% |
|---|{rule}---|---|---|
"""
_MASS = """
### Attention mass, {texts} texts

`mass=0.95` asks for the fewest tokens estimated to hold 95% of the softmax. **Reached** is the share of (layer, KV head, step) that hold it by exact count.

| method | reached 0.95 | exact mass | estimated | tokens read | KL |
|---|---|---|---|---|---|
"""


def page(rows: Sequence[DivergenceRow]) -> str:
    """The page: a section for each context and number of texts, those with most texts first."""
    groups = sorted({(row.settings.context, -len(row.settings.texts)) for row in rows})
    text = _HEAD.format(tokens=rows[0].settings.tokens, context=groups[0][0])
    for context, texts in groups:
        here = [row for row in rows if _group(row) == (context, texts) and row.complete]
        text += _by_budget(here) + _others(here) + _by_mass(here)
    return text


def _group(row: DivergenceRow) -> tuple[int, int]:
    return row.settings.context, -len(row.settings.texts)


def _settings(rows: Sequence[DivergenceRow]) -> dict[str, str]:
    one = rows[0].settings
    return {"context": f"{one.context:,}", "texts": str(len(one.texts))}


def _by_budget(rows: Sequence[DivergenceRow]) -> str:
    dense = next(row.summary for row in rows if row.method == "dense")
    head = _BUDGETS.format(
        **_settings(rows),
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


def _others(rows: Sequence[DivergenceRow]) -> str:
    """Methods without a budget: those that compute prompts, place or activate."""
    found = [row for row in rows if row.budget == "full" and row.method != "dense"]
    lines = [_row([f"`{row.method}`", _kl(row), f"{row.summary.top1:.1%}"]) for row in found]
    return "\n| without a budget | KL | top-1 |\n|---|---|---|\n" + "".join(lines) if lines else ""


def _by_mass(rows: Sequence[DivergenceRow]) -> str:
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
    return _MASS.format(**_settings(rows)) + "".join(lines)


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
    groups = Counter(map(_group, rows))
    most = max(groups, key=lambda group: groups[group])
    shown = [
        row
        for row in rows
        if _group(row) == most and row.complete and (row.budget in BUDGETS or row.method == "dense")
    ]
    draw(shown, RESULTS / "real-model.png")


if __name__ == "__main__":
    main()
