"""Export, in Keyhole's environment: what it writes is what is shipped, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not in the environment of secure computation")
from keyhole.core.errors import SpecError, UnsupportedModelError
from keyhole.private.files import read_cases, read_run, read_weights
from keyhole.private.plain.export import shape_of
from keyhole.private.plain.folder import settings_of
from keyhole.private.settings import SettingsError
from tests.private import tiny


def test_the_shipped_folders_are_what_keyhole_decodes(tmp_path: Path) -> None:
    tiny.write_all(tmp_path)
    for name in tiny.CASES:
        made, shipped = tmp_path / name, tiny.PLAIN / name
        run, known = read_run(made), read_run(shipped)
        assert (run.shape, run.settings, run.tensors) == (known.shape, known.settings, known.tensors)
        weights = read_weights(shipped, known)
        for tensor, value in read_weights(made, run).items():
            np.testing.assert_array_equal(value, weights[tensor])
        for ours, theirs in zip(read_cases(made, run), read_cases(shipped, known), strict=True):
            np.testing.assert_array_equal(ours.expected, theirs.expected)
            np.testing.assert_allclose(ours.margins, theirs.margins, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "error", "says"),
    [
        ("quest", SpecError, "dense, streamingllm"),
        ("mpcache + quantised", SpecError, "one alone"),
        ("mpcache(kv_dtype=int8)", SpecError, "kv_dtype=auto"),
        ("streamingllm(layers=pyramid)", SpecError, "layers=uniform"),
        ("mpcache(sinks=3)", SettingsError, "give 8"),
        ("mpcache(window=8)", SettingsError, "at least 16"),
    ],
)
def test_what_has_no_fixed_sizes_is_refused(method: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        settings_of(method)


def test_other_models_are_refused() -> None:
    config = tiny.model_of("llama").config
    config.hidden_act = "relu"
    with pytest.raises(UnsupportedModelError, match="silu"):
        shape_of(config)
    config.model_type = "bert"
    with pytest.raises(UnsupportedModelError, match="llama"):
        shape_of(config)
