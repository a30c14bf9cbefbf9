"""Operations and whole runs under ABY3, all parties in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("spu", reason="the package spu is not installed; `make test-private` has it")
import jax.numpy as jnp

from keyhole.private import files
from keyhole.private.cost import Heads
from keyhole.private.packing import way_of
from keyhole.private.runtime import bench
from keyhole.private.runtime import party as parties
from keyhole.private.runtime.links import CLIENT, SERVER, PartyError, packed, unpacked
from keyhole.private.runtime.local import together
from keyhole.private.runtime.party import Party
from keyhole.private.runtime.program import Shape, compiled
from keyhole.private.runtime.protocols import Protocol, protocol_of
from keyhole.private.runtime.session import Session
from keyhole.private.runtime.stages import Stages
from keyhole.private.runtime.trace import log_to, traced
from keyhole.private.secure import numerics, packing, ranking, softmax
from keyhole.private.settings import Amount, Settings, SettingsError

ABY3, CHEETAH = protocol_of("aby3"), protocol_of("cheetah")
PLAIN = Path(__file__).parent / "plain"
MPCACHE = Settings(
    "mpcache", sinks=8, window=8, keep=Amount(fraction=0.5), budget=Amount(tokens=9), fine=4, coarse=8
)


def secretly(function, *values: np.ndarray) -> np.ndarray:
    """The function of secret values, as the client opens it."""
    given = {f"in{place}": value for place, value in enumerate(values)}
    shapes = {name: Shape(value.shape, value.dtype) for name, value in given.items()}
    program = compiled(
        "test", lambda named: {"out": function(*(named[name] for name in sorted(named)))}, shapes
    )

    def part(party: Party) -> np.ndarray | None:
        for name, value in given.items():
            party.share(name, value if party.rank == CLIENT else None, CLIENT)
        party.run(program)
        return party.open("out")

    opened = together(ABY3, part)
    assert opened[1:] == [None, None]
    assert opened[0] is not None
    return opened[0]


def test_functions_are_within_the_grids_error() -> None:
    x = np.linspace(-30, 30, 301).astype(np.float32)
    falling = -np.abs(x)
    exact = np.where(falling > -numerics.CLIP, np.exp(falling), 0)
    np.testing.assert_allclose(secretly(numerics.exp_of, falling * numerics.UNIT), exact, atol=5e-4)
    logistic = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(secretly(numerics.silu, x), x * logistic, atol=1e-3)


@pytest.mark.parametrize("size", [0.05, 1.0, 15.0])
def test_norms_of_small_and_large_states(size: float) -> None:
    x = (np.random.default_rng(0).normal(size=(2, 32)) * size).astype(np.float32)
    ones = np.ones(32, np.float32)
    exact = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(
        secretly(lambda x, w: numerics.rms_norm(x, w, 1e-6), x, ones), exact, atol=2e-3
    )


@pytest.mark.parametrize("count", [1, 2, 3, 17, 40])
def test_the_greatest_by_groups_of_all_pairs(count: int) -> None:
    x = np.random.default_rng(count).integers(-9, 9, (2, count)).astype(np.float32)
    np.testing.assert_allclose(softmax.largest(jnp.asarray(x)), x.max(-1, keepdims=True))
    if count in (3, 17):
        np.testing.assert_allclose(secretly(softmax.largest, x), x.max(-1, keepdims=True), atol=1e-4)


def test_weights_add_up_to_one_over_few_and_many() -> None:
    for count in (1, 2, 40):
        logits = np.random.default_rng(count).normal(size=(3, count)).astype(np.float32) * 3
        exact = np.exp(logits - logits.max(-1, keepdims=True))
        exact /= exact.sum(-1, keepdims=True)

        def share(scaled):
            powers = softmax.powers_of(scaled)
            return softmax.normalised(powers, powers)

        np.testing.assert_allclose(secretly(share, logits * numerics.UNIT), exact, atol=1e-3)


@pytest.mark.parametrize(
    ("rows", "inner", "way"), [(3, 5, "diagonal"), (1, 8000, "wide"), (9, 8000, "apart")]
)
def test_heads_are_multiplied_together_or_apart(rows: int, inner: int, way: str) -> None:
    assert way_of(2, rows, inner, 2) == way
    random = np.random.default_rng(0)
    left, right = random.integers(-3, 4, (2, rows, inner)), random.integers(-3, 4, (2, inner, 2))
    made = packing.product(jnp.asarray(left, jnp.int32), jnp.asarray(right, jnp.float32))
    np.testing.assert_array_equal(made, left @ right)


@pytest.mark.parametrize("count", [1, 5, 64, 65, 130])
def test_places_are_those_of_a_stable_sort(count: int) -> None:
    scores = np.random.default_rng(count).integers(0, 9, (2, count)).astype(np.float32)
    order = np.argsort(-scores, axis=-1, kind="stable")
    np.testing.assert_array_equal(np.argsort(order, axis=-1), ranking.places(jnp.asarray(scores)))


@pytest.mark.parametrize("pick", [ranking.best, ranking.quick_best])
def test_the_best_are_marked_in_order(pick) -> None:
    scores = np.random.default_rng(0).normal(size=(2, 9)).astype(np.float32)
    marks = secretly(lambda scores: pick(scores, 3), scores)
    np.testing.assert_array_equal(marks.argmax(-1), np.argsort(-scores, axis=-1)[:, :3])
    np.testing.assert_array_equal(marks.sum(-1), 1)


@pytest.mark.parametrize("gather", ["rows", "logits"])
@pytest.mark.parametrize("ranking_", ["pairs", "quick"])
def test_attention_sends_what_the_model_says_and_opens_nothing(
    tmp_path: Path, gather: str, ranking_: str
) -> None:
    settings = Settings(**vars(MPCACHE) | {"gather": gather, "ranking": ranking_})
    layer, sent = bench.layer_of(Heads(2, 2, 16), settings, 120), []
    bench.program_of(layer)  # once, not by each party
    for seed in range(2):
        log = tmp_path / f"{seed}.log"
        log_to(log)
        made = together(ABY3, lambda party, seed=seed: bench.measure(party, layer, seed, 1), profile=True)
        error = made[0].error
        assert error is not None
        assert error < 5e-3
        trace = traced([log.read_text()])
        sent.append({name: spent.bytes for name, spent in trace.operations.items()})
        assert bool(trace.opened) == (ranking_ == "quick")
    if ranking_ == "pairs":
        assert sent[0] == sent[1]
        assert sum(sent[0].values()) == pytest.approx(layer.predicted.bytes, rel=0.1)
        assert trace.messages / 3 == pytest.approx(layer.predicted.messages, rel=0.1)


@pytest.mark.parametrize("name", ["llama-mpcache", "gpt2-static", "gpt2-streamingllm"])
def test_opened_tokens_are_those_of_plaintext_decoding(name: str) -> None:
    run = files.read_run(PLAIN / name)
    weights, cases = files.read_weights(PLAIN / name, run), files.read_cases(PLAIN / name, run)
    lengths, stages = [(len(case.tokens), len(case.expected)) for case in cases], Stages(run)

    def part(party: Party) -> list[list[int]]:
        mine = weights if party.rank == SERVER else None, cases if party.rank == CLIENT else None
        answers = Session(party, run, *mine, stages=stages).play(lengths)
        return [answer.tokens for answer in answers]

    opened = together(ABY3, part)
    assert opened[0] == [case.expected.tolist() for case in cases]
    assert opened[1] == opened[2] == [[], []]


@pytest.mark.parametrize("protocol", [ABY3, CHEETAH])
def test_a_share_that_was_changed_on_its_way_is_refused(protocol: Protocol) -> None:
    def part(party: Party) -> None:
        party.share("x", np.arange(3, dtype=np.float32) if party.rank == CLIENT else None, CLIENT)
        data = bytearray(packed(party._runtime.get_var("x")))
        data[-1] ^= 1
        with pytest.raises(PartyError, match="checksum"):
            unpacked(bytes(data), CLIENT)

    together(protocol, part)


def test_a_wrong_share_of_the_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(share: object) -> bytes:
        share.share_chunks = [chunk[:-1] + bytes([chunk[-1] ^ 1]) for chunk in share.share_chunks]  # pyright: ignore
        return packed(share)  # pyright: ignore

    def part(party: Party) -> None:
        party.share("x", np.arange(3, dtype=np.int32) if party.rank == CLIENT else None, CLIENT)
        party.link.barrier()
        if party.rank == CLIENT:
            monkeypatch.setattr(parties, "packed", wrong)
        party.link.barrier()
        if party.rank == CLIENT:
            with pytest.raises(PartyError, match="do not fit each other"):
                party.open("x")
        else:
            party.open("x")

    together(ABY3, part)


@pytest.mark.parametrize("protocol", [ABY3, CHEETAH])
def test_another_version_is_named(protocol: Protocol) -> None:
    def part(party: Party) -> None:
        with pytest.raises(PartyError, match="differ in the version"):
            party.agree({"the version of Keyhole": f"0.{party.rank == party.count - 1}"})

    together(protocol, part)


@pytest.mark.parametrize(
    ("name", "why"),
    [("securenn", "0.23"), ("semi2k", "first party"), ("x", "not known")],
)
def test_protocols_that_are_not_safe_are_refused(name: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        protocol_of(name)


def test_two_parties_alone_attend_and_open_nothing(tmp_path: Path) -> None:
    log, layer = tmp_path / "log", bench.layer_of(Heads(2, 1, 4), Settings(), 6)
    log_to(log)
    made = together(CHEETAH, lambda party: bench.measure(party, layer, 0, 1), profile=True)
    assert made[0].error is not None
    assert made[0].error < 5e-3
    assert traced([log.read_text()]).opened == {}
