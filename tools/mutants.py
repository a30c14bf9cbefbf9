"""Seeded mutants of the code that decides what is kept and read, each against the tests of its package.

`make mutants` changes one operator, constant or condition at a time, in memory, and runs the tests that
mirror the module; a mutant that no test notices is named. The same seed gives the same mutants.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
# Packages that are mutated, and the tests that must notice.
TESTS = {
    "selection": ["tests/selection", "tests/methods/test_full_budget.py", "tests/methods/test_lives.py"],
    "retention": ["tests/retention", "tests/cache/test_evicting.py", "tests/methods/test_composition.py"],
    "storage": ["tests/storage", "tests/cache/test_layer.py"],
    "cache": ["tests/cache", "tests/methods/test_lives.py"],
    "engines/transformers": [
        f"tests/engines/transformers/test_{name}.py"
        for name in (
            "cache",
            "attach",
            "calls",
            "context",
            "persist",
            "identity",
            "rope",
            "support",
            "generate",
        )
    ],
}
_COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip
_ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult}


def mutations(node: ast.AST) -> Iterator[tuple[str, object]]:
    """What can be changed at a node: a line about it, and the change as (field, new value)."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        new = _COMPARISONS[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} -> {new.__name__}", ("ops", [new(), *node.ops[1:]])
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC and not _text(node):
        new = _ARITHMETIC[type(node.op)]
        yield f"{type(node.op).__name__} -> {new.__name__}", ("op", new())
    if isinstance(node, ast.BoolOp):
        new = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__} -> {new.__name__}", ("op", new())
    if isinstance(node, ast.Constant) and type(node.value) is int:
        yield f"{node.value} -> {node.value + 1}", ("value", node.value + 1)
    if isinstance(node, ast.If):
        yield "if -> if not", ("test", ast.UnaryOp(ast.Not(), node.test))


def _text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(
        isinstance(s, ast.JoinedStr) or (isinstance(s, ast.Constant) and isinstance(s.value, str))
        for s in sides
    )


def sites(package: str) -> list[tuple[Path, int, int]]:
    """Every change in a package, as file, position of the node in it, and number of the change there."""
    found = []
    for path in sorted((SOURCE / "keyhole" / package).rglob("*.py")):
        if "triton" in path.parts or path.name == "__init__.py":
            continue
        for place, node in enumerate(ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
            found += [(path, place, which) for which, _ in enumerate(mutations(node))]
    return found


def mutated(path: Path, place: int, which: int) -> tuple[str, str]:
    """The source with one change, and a line that says which."""
    tree = copy.deepcopy(ast.parse(path.read_text(encoding="utf-8")))
    node = list(ast.walk(tree))[place]
    what, (field, value) = list(mutations(node))[which]  # type: ignore[misc]
    before = ast.unparse(node).splitlines()[0]
    setattr(node, field, value)
    name = path.relative_to(SOURCE)
    line = f"{name}:{node.lineno}: {what} in `{before}`"  # type: ignore[attr-defined]
    return ast.unparse(ast.fix_missing_locations(tree)), line


class _Mutant(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves one module from changed source, before any other finder is asked."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, name, _path, _target=None):
        return (
            importlib.util.spec_from_file_location(name, self.path, loader=self)
            if name == self.name
            else None
        )

    def exec_module(self, module) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def run(path: Path, place: int, which: int, package: str) -> int:
    """Run the tests on one mutant in this process; returns pytest's exit code."""
    import pytest

    source, _ = mutated(path, place, which)
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    sys.meta_path.insert(0, _Mutant(name, path, source))
    return int(pytest.main(["-x", "-q", "--no-header", "-p", "no:cacheprovider", *TESTS[package]]))


def _pass(package: str) -> bool:
    """Whether the tests of a package pass as it is: otherwise they would notice anything."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS[package]]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def _verdict(command: list[str], seconds: int) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "timed out"
    return "noticed" if done.returncode else "SURVIVED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=30, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=240, help="at most, for the tests of one mutant")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        package, path, place, which = asked.one
        return run(Path(path), int(place), int(which), package)
    failing = [package for package in TESTS if not _pass(package)]
    if failing:
        print(f"tests of {', '.join(failing)} fail without a mutant; mend these first")
        return 1
    draw, verdicts = random.Random(asked.seed), Counter[str]()
    for number in range(asked.count):
        package = list(TESTS)[number % len(TESTS)]
        path, place, which = draw.choice(sites(package))
        _, line = mutated(path, place, which)
        command = [sys.executable, __file__, "--one", package, str(path), str(place), str(which)]
        verdict = _verdict(command, asked.seconds)
        print(f"{verdict:9} {line}", flush=True)
        verdicts[verdict] += 1
    print(", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
