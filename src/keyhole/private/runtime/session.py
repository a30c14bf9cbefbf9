"""A whole run as each party plays it: weights and prompts into shares, greedy tokens to the client."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from keyhole.core.version import __version__
from keyhole.private import sizes
from keyhole.private.files import Case, Run
from keyhole.private.runtime.links import CLIENT, SERVER, PartyError
from keyhole.private.runtime.party import Party
from keyhole.private.runtime.stages import Stages


class Answer(NamedTuple):
    """Opened tokens, and the seconds that each took: sharing, the program and opening, without compiling."""

    tokens: list[int]
    seconds: list[float]


class Session:
    """One party's part of a run.

    Args:
        weights: at the server; None elsewhere.
        cases: at the client; None elsewhere.
        stages: programs that parties in one process have together.
        told: called with the number of a prompt and its `Answer`, at the client.
    """

    def __init__(
        self,
        party: Party,
        run: Run,
        weights: dict[str, np.ndarray] | None,
        cases: list[Case] | None,
        told: Callable[[int, Answer], None] | None = None,
        stages: Stages | None = None,
    ) -> None:
        self.party, self.run, self.weights, self.cases = party, run, weights, cases
        self._told = told
        self._stages = Stages(run) if stages is None else stages

    def play(self, lengths: list[tuple[int, int]]) -> list[Answer]:
        """Answer prompts of so many tokens, by so many new tokens each. At the client also what came of
        it."""
        self._agree(lengths)
        for name in sorted(self.run.tensors):
            value = None if self.weights is None else self.weights[name]
            self.party.share(f"w.{name}", value, SERVER)
        answers = []
        for place, (prompt, new) in enumerate(lengths):
            tokens = None if self.cases is None else self.cases[place].tokens
            answers.append(self._answer(tokens, prompt, new))
            if self.party.rank == CLIENT and self._told is not None:
                self._told(place, answers[-1])
        return answers

    def _agree(self, lengths: list[tuple[int, int]]) -> None:
        public = json.dumps([asdict(self.run.shape), self.run.settings.as_json(), lengths], sort_keys=True)
        self.party.agree(
            {
                "the version of Keyhole": __version__,
                "the version that exported": self.run.version,
                "model, settings and lengths": hashlib.sha256(public.encode()).hexdigest(),
                "the protocol": self.party.protocol.name,
            }
        )

    def _answer(self, tokens: np.ndarray | None, prompt: int, new: int) -> Answer:
        opened, seconds = [], []
        for step in [None, *sizes.steps(self.run.settings, prompt, new - 1)]:
            stages = self._stages.prompt(prompt) if step is None else self._stages.step(prompt, step)
            programs = list(stages)
            begun = time.perf_counter()
            self.party.share("tokens", self._marks(tokens), CLIENT)
            for program in programs:
                self.party.run(program)
            token = self.party.open("token")
            seconds.append(time.perf_counter() - begun)
            if token is not None:
                opened.append(self._checked(int(token.reshape(-1)[0])))
                tokens = np.array(opened[-1:])
        return Answer(opened, seconds)

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.run.shape.vocabulary:
            raise PartyError(
                f"token {token} came out, which there is not: a share was wrong; start all again"
            )
        return token

    def _marks(self, tokens: np.ndarray | None) -> np.ndarray | None:
        """One-hot rows: the server's embedding is multiplied by them, so nobody looks anything up."""
        if tokens is None:
            return None
        return (tokens[:, None] == np.arange(self.run.shape.vocabulary)).astype(np.int32)
