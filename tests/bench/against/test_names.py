"""Engines by name."""

import pytest

from keyhole.bench.against import engines
from keyhole.bench.against.engines import missing, read_engine
from keyhole.core.errors import SpecError


def test_options_have_defaults():
    assert read_engine("llama.cpp") == ("llama.cpp", {"kv": "f16", "flash": "auto"})
    assert read_engine(" llama.cpp(kv=q8_0) ") == ("llama.cpp", {"kv": "q8_0", "flash": "auto"})
    assert read_engine("transformers(attention=eager)")[1] == {"attention": "eager", "dtype": "float32"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("llamacpp", "did you mean 'llama.cpp'"),
        ("llama.cpp(cache=q8_0)", "no option 'cache'"),
        ("llama.cpp(kv=q3)", "kv=q3 .*q8_0"),
        ("llama.cpp(kv=q8_0", "cannot read"),
        ("llama.cpp + transformers", "like llama.cpp"),
        ("", "unknown engine ''"),
    ],
)
def test_unknown_ones_are_refused(spec, message):
    with pytest.raises(SpecError, match=message):
        read_engine(spec)


def test_one_that_is_not_installed_is_named_with_the_way_to_get_it(monkeypatch):
    assert missing("transformers(attention=eager)") is None
    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    assert "keyhole[peers]" in str(missing("llama.cpp(flash=off)"))
