"""From which length a method pays: by constants alone, the same on any day."""

import logging
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from keyhole.core.break_even import ALWAYS, NEVER, BreakEven
from keyhole.core.costs import DENSE, CostTable, Heads, Rates, Work, cost_table
from keyhole.core.costs.table import FORMS, MACHINES
from keyhole.core.model_info import ModelInfo
from keyhole.methods import METHODS, Recipe, RetrievalMethod
from keyhole.methods.facts import Facts, value
from keyhole.methods.pays import break_evens, said, solve
from keyhole.methods.work import dense_work, form_of, selecting_work

CPU = torch.device("cpu")
HEADS = Heads(32, 8, 128, 128, torch.bfloat16)
SELECTING = [name for name, kind in METHODS.items() if issubclass(kind, RetrievalMethod)]
SMALL = "pqcache(subspaces=4, bits=4, budget=64)"


@pytest.fixture(autouse=True)
def _shipped(monkeypatch):
    monkeypatch.setenv("KEYHOLE_COSTS", "shipped")


def table(dense, selecting, machine="base"):
    return CostTable(machine, {form: {DENSE: dense, "quest": selecting} for form in FORMS})


def test_the_length_is_where_the_lines_cross():
    """By hand: reading costs 1 ns a byte; 32 KiB of dense each 8 tokens; a tenth is read, and 16 + 64."""
    heads = Heads(4, 2, 64, 64, torch.float32)
    row = 2 * 2 * 64 * 4
    found = solve(
        METHODS["quest"](),
        table(Rates(0.0, Work(read=1.0)), Rates(1000.0, Work(read=1.0))),
        heads,
        1,
    )
    expected = next(
        tokens
        for tokens in range(1, 10_000)
        if 1.05 * (1e6 + row * min(tokens, round(tokens / 10) + 80)) <= row * tokens
    )
    assert 0 <= found.tokens - expected < 32


@pytest.mark.parametrize("name", SELECTING)
@pytest.mark.parametrize("machine", MACHINES)
def test_lengths_are_sane(machine, name):
    """Larger batches never pay later, more threads and less overhead's share never earlier."""
    constants = cost_table(machine)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = solve(METHODS[name](), constants, replace(HEADS, dtype=dtype), 1)
        lengths = [found.at(batch) for batch in (1, 2, 4, 16, 64)]
        assert lengths == sorted(lengths, reverse=True)
        assert solve(METHODS[name](), constants, replace(HEADS, dtype=dtype), 4).tokens >= lengths[0]
        assert all(length == NEVER or 0 < length <= 1 << 22 for length in lengths)


def test_the_same_question_has_the_same_answer():
    first = break_evens(Recipe.parse("quest"), HEADS, CPU)
    solve.cache_clear()
    assert break_evens(Recipe.parse("quest"), HEADS, CPU) == first


def test_methods_that_select_nothing_always_pay():
    for spec in ("dense", "snapkv", "sale"):
        assert break_evens(Recipe.parse(spec), HEADS, CPU) == ALWAYS


def test_selecting_can_be_made_free(monkeypatch):
    monkeypatch.setenv("KEYHOLE_COSTS", "zero")
    assert break_evens(Recipe.parse("pqcache"), HEADS, CPU) == ALWAYS
    assert break_evens(Recipe.parse("delta"), HEADS, CPU) == ALWAYS


def test_a_method_may_say_itself_from_where_it_pays():
    found = break_evens(Recipe.parse("delta"), HEADS, CPU)
    assert (found.tokens, found.batched) == (4096, ())


@dataclass(frozen=True)
class _Unknown(RetrievalMethod):
    name: ClassVar[str] = "unknown"
    facts: ClassVar[Facts] = Facts(stored="", select="", best_for="", weak_at="", scan="N")


@pytest.mark.parametrize("machine", MACHINES)
def test_a_method_from_outside_is_judged_like_the_others(machine):
    """A method that nobody measured is not taken for the slowest of all, which never pays on a CPU."""
    constants = cost_table(machine)
    known = constants.rates["bfloat16"]
    lengths = [solve(METHODS[name](), constants, HEADS, 1).tokens for name in known if name in SELECTING]
    assert 32 <= solve(_Unknown(), constants, HEADS, 1).tokens <= max(lengths, default=NEVER)
    assert constants.of("bfloat16", "unknown").overhead > known[DENSE].overhead


def test_rebuilding_a_fixed_number_of_keys_pays_in_long_contexts():
    """At 131,072 tokens it was measured at less than half of the dense step's time; a tenth never pays."""
    constants = cost_table("avx512")
    heads = replace(HEADS, dtype=torch.float32)
    assert solve(METHODS["shadowkv"](budget=2048), constants, heads, 1).tokens < 131_072
    assert solve(METHODS["shadowkv"](), constants, heads, 1).tokens > 1 << 20


def test_a_larger_budget_pays_later():
    constants = cost_table("avx2")
    lengths = [
        solve(METHODS["quest"](budget=share), constants, HEADS, 1).tokens for share in (0.05, 0.1, 0.3, 1.0)
    ]
    assert lengths == sorted(lengths)
    assert lengths[-1] == NEVER


def test_a_budget_of_mass_is_taken_for_a_quarter_or_its_cap():
    found = [selecting_work(METHODS["quest"](budget=b), HEADS, 8000, 8000).read for b in _budgets()]
    assert found[0] == found[1] > found[2]


def _budgets():
    from keyhole.core.budget import Budget

    return Budget(fraction=0.25), Budget(mass=0.9), Budget(mass=0.9, cap=0.1)


def test_a_share_of_the_context_is_more_of_what_was_kept():
    """What is stored is half the context; a tenth of the context is a fifth of that."""
    alone, behind = (
        break_evens(Recipe.parse(spec), HEADS, CPU).tokens
        for spec in ("pqcache", "snapkv(budget=0.5) + pqcache")
    )
    assert behind >= alone


def test_what_a_step_moves():
    heads = Heads(8, 2, 16, 8, torch.float32, batch=3)
    assert dense_work(heads, "float32", 100) == Work(ranked=600, read=6 * 100 * 24 * 4)
    assert dense_work(heads, "int4", 100).read == 6 * 100 * 12
    method = METHODS["quest"](budget=10, sinks=2, window=8, page=4)
    found = selecting_work(method, heads, 100, 100)
    assert found.read == 6 * 20 * 24 * 4
    assert found.ranked == 600
    letters = {"D": 16, "e": 4, "N": 100, "page": 4, "box_dtype": "int4"}
    assert found.scanned == 6 * value(method.facts.scan, letters)


@pytest.mark.parametrize("name", SELECTING)
def test_every_method_states_its_work(name):
    for kv_dtype in ("auto", "int8"):
        if (name, kv_dtype) not in (("shadowkv", "int8"), ("nosa", "int8")):
            work = selecting_work(METHODS[name](kv_dtype=kv_dtype), HEADS, 4096, 4096)
            assert all(amount >= 0 for amount in work)
            assert work.read > 0


def test_forms():
    quest = METHODS["quest"]
    assert form_of(quest(), torch.float32) == form_of(quest(), torch.float64) == "float32"
    assert form_of(quest(), torch.float16) == form_of(quest(), torch.bfloat16) == "bfloat16"
    assert form_of(quest(kv_dtype="int8"), torch.float16) == "int8"


def test_each_decision_is_one_line(caplog):
    solve.cache_clear()
    with caplog.at_level(logging.INFO, logger="keyhole"):
        for _ in range(3):
            found = break_evens(Recipe.parse("quest(budget=0.2)"), HEADS, CPU)
    assert len(caplog.messages) == 1
    assert (
        f"quest(budget=0.2): selecting pays from {said(found.tokens)}, by shipped constants for "
        in caplog.text
    )


def test_below_it_a_layer_reads_everything():
    torch.manual_seed(0)
    spec = "pqcache(subspaces=4, bits=4, budget=64{})"
    cases = [("", 0, True), ("", 401, True), ("", 402, False)]
    cases += [(f", dense_below={n}", 9999, n <= 401) for n in (0, 400, 401, 402)]
    for option, pays, selects in cases:
        layer = Recipe.parse(spec.format(option)).layers(ModelInfo((0,), BreakEven(pays)))[0]
        layer.append(torch.randn(1, 2, 400, 16), torch.randn(1, 2, 400, 16))
        layer.append(torch.randn(1, 2, 1, 16), torch.randn(1, 2, 1, 16))
        layer.prepare()
        assert (layer.indexed > 0) is selects


@pytest.mark.parametrize(("batch", "selects"), [(1, False), (2, True), (3, True), (4, False)])
def test_each_batch_goes_by_its_own_length(batch, selects):
    pays = BreakEven(9999, ((2, 401), (4, 402)))
    layer = Recipe.parse(SMALL).layers(ModelInfo((0,), pays))[0]
    layer.append(torch.randn(batch, 2, 401, 16), torch.randn(batch, 2, 401, 16))
    assert layer.selects is selects
