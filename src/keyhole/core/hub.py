"""Whether a name stands for a model on the hub, found out quickly where the hub cannot be reached."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

_PATIENCE = 5.0  # seconds for the hub's answer; transformers itself tries for about a minute


@lru_cache(maxsize=16)
def find_on_hub(name: str) -> str:
    """The name if the hub answers; where it does not, the directory of the copy that an earlier use left.

    Raises:
        ValueError: the hub has no such model, or it cannot be reached and there is no copy.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=_PATIENCE)
    except RepositoryNotFoundError:
        raise ValueError(_nothing(name, "and the hub has none")) from None
    except HfHubHTTPError:
        return name  # a model of another form, or one that asks for a login: transformers says it
    except Exception as error:  # of whichever HTTP client the hub's package uses
        copy = try_to_load_from_cache(name, "config.json")
        if isinstance(copy, str):
            return str(Path(copy).parent)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(_nothing(name, f"and the hub cannot be reached ({reason})")) from error
    return name


def _nothing(name: str, hub: str) -> str:
    return (
        f"there is no model {name!r}: no directory or file of that name, {hub}; give the directory of a "
        "Hugging Face model, a GGUF file, or smollm2, the packaged SmolLM2-135M-Instruct"
    )
