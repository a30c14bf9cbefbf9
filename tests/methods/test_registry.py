"""Methods of packages outside: by entry points, and by `register`."""

import sys
import textwrap
from dataclasses import dataclass

import pytest

import keyhole
from keyhole.core.errors import SpecError
from keyhole.methods import METHODS, Dense, Recipe
from keyhole.methods.registry import Registry

GOOD = """
from dataclasses import dataclass
from typing import ClassVar
from keyhole.methods import StreamingLLM
from keyhole.methods.options import integer

@dataclass(frozen=True)
class Outside(StreamingLLM):
    name: ClassVar[str] = "outside"
    keeps: int = integer(3, ge=1, unit="tokens", help="Tokens.")
"""


FINE = GOOD.replace("outside", "fine").replace("Outside", "Fine")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution on the path: modules, and entry points of the group `keyhole.methods`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(package, points, **modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
            monkeypatch.delitem(sys.modules, name, raising=False)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {target}" for name, target in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[keyhole.methods]", *lines]))

    return put


def test_a_plugin_is_found_by_its_name_and_imported_only_then(install):
    install("good", {"outside": "good_plugin:Outside"}, good_plugin=GOOD)
    registry = Registry([Dense])
    assert "dense" in registry
    assert registry["dense"] is Dense
    assert "good_plugin" not in sys.modules
    kind = registry["outside"]
    assert (kind.name, kind(keeps=5).keeps, kind().sinks) == ("outside", 5, 4)
    assert list(registry) == ["dense", "outside"]
    assert len(registry) == 2
    with pytest.raises(KeyError):
        registry["nowhere"]


def test_a_specification_finds_a_plugin(install, monkeypatch):
    install("good", {"outside": "good_plugin:Outside"}, good_plugin=GOOD)
    monkeypatch.setattr("keyhole.methods.spec.METHODS", Registry(METHODS._methods.values()))
    recipe = Recipe.parse("outside(keeps=9, budget=20) + sale")
    assert str(recipe.stages[0]) == "outside(budget=20, keeps=9)"
    with pytest.raises(SpecError, match=r"outside: keeps=0 is out of range.*at least 1"):
        Recipe.parse("outside(keeps=0)")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import surely_not_installed", "surely_not_installed"),
        ("Outside = 3", "not a frozen dataclass"),
        (GOOD.replace('"outside"', '"other"'), "'other'"),
        (GOOD.replace('integer(3, ge=1, unit="tokens", help="Tokens.")', "3"), "keeps is not declared"),
        ("", "Outside"),
    ],
)
def test_a_broken_plugin_is_named_and_the_others_work(install, module, said):
    install("bad", {"outside": "bad_plugin:Outside"}, bad_plugin=module)
    install(
        "good",
        {"fine": "good_plugin:Fine"},
        good_plugin=GOOD.replace("outside", "fine").replace("Outside", "Fine"),
    )
    registry = Registry([Dense])
    with pytest.warns(UserWarning, match=f"bad 1.0.*outside.*{said}"):
        assert list(registry) == ["dense", "fine"]
    assert list(registry) == ["dense", "fine"]  # warned once
    with pytest.raises(SpecError, match=f"bad 1.0.*outside.*{said}"):
        registry["outside"]


def test_a_name_that_is_taken_is_refused(install):
    install("first", {"dense": "good_plugin:Outside"}, good_plugin=GOOD.replace('"outside"', '"dense"'))
    install("second", {"twice": "good_plugin:Outside"})
    install("third", {"twice": "good_plugin:Outside"})
    registry = Registry([Dense])
    with pytest.warns(UserWarning, match="called 'dense' already") as warned:
        assert list(registry) == ["dense"]
    assert len(warned) == 2
    assert registry["dense"] is Dense
    with pytest.raises(SpecError, match=r"(second|third) 1.0.*twice.*(second|third) 1.0"):
        registry["twice"]


def test_register_in_a_notebook(monkeypatch):
    monkeypatch.setattr(METHODS, "_methods", dict(METHODS._methods))

    @keyhole.register
    @dataclass(frozen=True)
    class Mine(Dense):
        name = "mine"

    assert METHODS["mine"] is Mine
    assert keyhole.register(Mine) is Mine
    assert str(Recipe.parse("mine + pqcache")) == "mine + pqcache"

    @dataclass(frozen=True)
    class Other(Dense):
        name = "pqcache"

    with pytest.raises(ValueError, match="PQCache is called 'pqcache' already"):
        keyhole.register(Other)
    with pytest.raises(TypeError, match="not a frozen dataclass"):
        keyhole.register("mine")


def test_a_name_nobody_could_write():
    @dataclass(frozen=True)
    class Spaced(Dense):
        name = "two words"

    with pytest.raises(ValueError, match="not a word"):
        Registry([Spaced])
