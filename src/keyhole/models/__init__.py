"""The model that comes with Keyhole; its card is `default/README.md`."""

from pathlib import Path


def default_model() -> str:
    """Directory of the embedded model, for `from_pretrained`."""
    return str(Path(__file__).parent / "default")
