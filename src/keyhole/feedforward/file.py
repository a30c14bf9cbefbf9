"""What was fitted to a model's activations, on disk: `activations.safetensors` and `activations.json`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from keyhole.core.artifacts import ArtifactFiles
from keyhole.core.model_info import ModelInfo
from keyhole.feedforward.fit import Fitted, Rule

_FILES = ArtifactFiles("activations", method="chess", format=1)


def write_activations(
    directory: str | Path,
    fitted: dict[str, Fitted],
    *,
    model: str,
    rule: Rule,
    attention: bool,
    **made: Any,
) -> None:
    """Write what is known of modules, by their names.

    Args:
        model: its fingerprint.
        rule: by which channels were weighed.
        attention: whether projections of attention are among them.
        made: what else there is to say about how they were made.
    """
    tensors = {
        f"{name}.{part}": tensor for name, each in fitted.items() for part, tensor in each._asdict().items()
    }
    _FILES.write(directory, tensors, model=model, rule=rule._asdict(), attention=attention, **made)


def read_activations(
    directory: str | Path, info: ModelInfo, rule: Rule, attention: bool
) -> dict[str, Fitted]:
    """What is known of a model's modules, by their names.

    Raises:
        ValueError: there is nothing, it is damaged, or made for another model or rule, or with or without
            projections of attention.
    """
    settings = _FILES.settings(directory, info)
    if settings["rule"] != rule._asdict():
        raise ValueError(
            f"{directory}: the activations were weighed by {Rule(**settings['rule'])}, not {rule}; "
            "give those options, or calibrate again with these"
        )
    if settings["attention"] != attention:
        raise ValueError(
            f"{directory}: the activations were made for attention={settings['attention']}, not {attention}; "
            "give that, or calibrate again"
        )
    return _fitted(directory, _FILES.written(directory))


@lru_cache(maxsize=2)  # every request asks for them
def _fitted(source: str | Path, _written: int) -> dict[str, Fitted]:
    tensors = _FILES.tensors(source)
    names = {name.rpartition(".")[0] for name in tensors}
    return {name: Fitted(*(tensors[f"{name}.{part}"] for part in Fitted._fields)) for name in sorted(names)}
