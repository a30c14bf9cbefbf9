"""Prompts of a benchmark: its own, from its configuration in the data's directory, or plain ones."""

from __future__ import annotations

from collections.abc import Mapping


def note(benchmark: str, files: str) -> str:
    """What to say where a benchmark's prompts are not there."""
    return (
        f"the prompts are Keyhole's wording, so these scores are not comparable with published ones of "
        f"{benchmark}; put its {files} into the data's directory to ask in its words"
    )


def fill(template: str, fields: Mapping[str, str], place: str) -> str:
    """The template with its `{name}` fields filled in.

    Raises:
        ValueError: a field that the record has not, or a brace that opens nothing.
    """
    try:
        return template.format_map(fields)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{place}: the prompt template {template[:60]!r} cannot be filled: {error}"
        ) from error
