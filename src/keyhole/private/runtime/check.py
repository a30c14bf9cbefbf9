"""Many prompts compared with plaintext decoding, one after another, in a file that a later call continues."""

from __future__ import annotations

# pyright: reportMissingImports=false
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from keyhole.core.files import write_text
from keyhole.private import files
from keyhole.private.files import Case, Run
from keyhole.private.runtime.links import CLIENT, SERVER, PartyError
from keyhole.private.runtime.local import together
from keyhole.private.runtime.party import Party
from keyhole.private.runtime.protocols import protocol_of
from keyhole.private.runtime.session import Answer, Session
from keyhole.private.runtime.stages import Stages

NEAR = 0.02  # logits nearer than this may change places in fixed point


class Checked(NamedTuple):
    """What came of so many answers.

    Attributes:
        same: answers with the tokens of plaintext decoding.
        near: answers that differ from it first where its two best logits are within `NEAR`.
        wrong: all others.
        tokens: opened in all.
        margin: the least by which plaintext decoding's best logit was ahead in any step.
    """

    same: int
    near: int
    wrong: int
    tokens: int
    margin: float


def answer_all(
    folder: Path, results: Path, protocol: str, limit: float, told: Callable[[int, int], None]
) -> Checked:
    """Answer the prompts of a folder that `results` has no answer to, with all parties in this process.

    Args:
        results: JSON lines, written after each prompt.
        limit: seconds after which no other prompt is begun.
        told: called with the number of answers that there are, and of prompts.

    Raises:
        PlainFileError: the folder cannot be used.
        PartyError: the results are of another folder or protocol.
    """
    run = files.read_run(folder)
    weights, cases = files.read_weights(folder, run), files.read_cases(folder, run)
    mark = {"protocol": protocol_of(protocol).name, **run.sha256, "settings": run.settings.as_json()}
    lines = _read(results, mark)
    known = {line["prompt"]: line["tokens"] for line in lines[1:]}
    stages, begun = Stages(run), time.monotonic()
    for place, case in enumerate(cases):
        if place in known or time.monotonic() - begun > limit:
            continue
        answer = _answered(run, stages, weights, case, protocol)
        lines.append({"prompt": place, **answer._asdict()})
        write_text(results, "".join(json.dumps(line) + "\n" for line in lines))
        known[place] = answer.tokens
        told(len(known), len(cases))
    return judged([(known[place], cases[place]) for place in sorted(known)])


def judged(answers: list[tuple[list[int], Case]]) -> Checked:
    """Compare answers with plaintext decoding's."""
    same = near = 0
    for tokens, case in answers:
        places = [place for place, token in enumerate(case.expected) if token != tokens[place]]
        same += not places
        near += bool(places) and case.margins[places[0]] <= NEAR
    opened = sum(len(tokens) for tokens, _ in answers)
    margin = min((float(case.margins.min()) for _, case in answers), default=0.0)
    return Checked(same, near, len(answers) - same - near, opened, margin)


def _answered(run: Run, stages: Stages, weights: dict[str, Any], case: Case, protocol: str) -> Answer:
    def part(party: Party) -> Answer:
        mine = weights if party.rank == SERVER else None
        session = Session(party, run, mine, [case] if party.rank == CLIENT else None, stages=stages)
        return session.play([(len(case.tokens), len(case.expected))])[0]

    return together(protocol_of(protocol), part, timeout=600)[CLIENT]


def _read(path: Path, mark: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.exists():
        return [mark]
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not lines or lines[0] != mark:
        raise PartyError(f"{str(path)!r} has results of another folder or protocol; give another file")
    return lines
