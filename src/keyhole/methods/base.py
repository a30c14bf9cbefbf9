"""A method: one published system as answers to the questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.feedforward import FeedForward
from keyhole.methods import options, placing
from keyhole.methods.facts import Facts
from keyhole.methods.option_kinds import Option
from keyhole.methods.options import options_of
from keyhole.prefill import Prefill
from keyhole.retention import Retention
from keyhole.selection import Selector
from keyhole.storage import KV_DTYPES, Storage


@dataclass(frozen=True)
class Method:
    """One published system: its fields are hyper-parameters, and each factory method answers one question.

    Fields are declared by the functions of `keyhole.methods.options`, which define their types and ranges.
    A factory returns one answer per served layer, made together since layers may share state. None
    leaves the question to the other stages of a recipe, and finally to the default: dense prefill, keep
    everything, store on the device, read everything, activate everything.

    Raises:
        SpecError: an option is out of range, or was renamed.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    facts: ClassVar[Facts]
    # Options without which it serves no model, and where to get them: it is left out where all methods are
    # run by their defaults.
    required: ClassVar[dict[str, str]] = {}
    # Options of earlier versions, and their current names.
    renamed: ClassVar[dict[str, str]] = {}

    def __new__(cls, *args: Any, **given: Any) -> Method:  # noqa: ARG004
        for old in given:
            if old in cls.renamed:
                raise cls.renaming(old, given[old])
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, (option, _) in self.options().items():
            object.__setattr__(self, name, option.read(self.name, name, getattr(self, name)))

    @classmethod
    def options(cls) -> dict[str, tuple[Option, Any]]:
        """The method's options and their defaults, by name."""
        return options_of(cls)

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """A JSON schema of the method's options."""
        properties = {name: option.schema(default) for name, (option, default) in cls.options().items()}
        for option, _ in cls.options().values():
            properties |= option.beside
        return {
            "title": cls.name,
            "description": f"{cls.paper}: {cls.summary}",
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
        }

    @classmethod
    def renaming(cls, old: str, value: Any) -> SpecError:
        """The error for an option's former name, with its replacement."""
        new = cls.renamed[old]
        option = cls.options()[new][0]
        value = dict(option.renamed).get(value, value)
        return SpecError(f"{cls.name}: {old}= is now {new}=; write {_option(new, value)}")

    @property
    def needs_positions(self) -> bool:
        """Whether a slot must be the same token in all heads and layers, or its position in the text."""
        return False

    def for_text(self, text: str) -> Method:  # noqa: ARG002
        """The method for one prompt, where its options depend on the prompt; otherwise itself."""
        return self

    def prefill(self, info: ModelInfo) -> list[Prefill] | None:  # noqa: ARG002
        """Compute: how attention over the prompt is computed."""
        return None

    def retention(self, info: ModelInfo) -> list[Retention] | None:  # noqa: ARG002
        """Retain: which tokens are kept."""
        return None

    def storage(self, info: ModelInfo) -> list[Storage] | None:  # noqa: ARG002
        """Place: where keys and values are stored."""
        return None

    def selectors(self, info: ModelInfo) -> list[Selector] | None:  # noqa: ARG002
        """Select: which tokens a query reads."""
        return None

    def feedforward(self, info: ModelInfo) -> FeedForward | None:  # noqa: ARG002
        """Activate: which weights a decode step reads; one answer for the model."""
        return None

    def __str__(self) -> str:
        changed = [name for name, (_, default) in self.options().items() if getattr(self, name) != default]
        given = ", ".join(_option(name, getattr(self, name)) for name in changed)
        return f"{self.name}({given})" if given else self.name


READ = "Tokens read per step, in addition to sinks and window."


@dataclass(frozen=True)
class RetrievalMethod(Method):
    """A method that keeps every token and reads a selection of them."""

    # Break-even length, where it cannot be derived from the step of a single layer.
    pays_from: ClassVar[int | None] = None
    renamed: ClassVar[dict[str, str]] = {**placing.RENAMED, "keys": "kv_dtype"}

    budget: Budget = options.budget(Budget(fraction=0.1), unit="tokens", help=READ)
    sinks: int = options.integer(16, ge=0, unit="tokens", help="First tokens of the sequence, always read.")
    window: int = options.integer(
        64, ge=1, unit="tokens", help="Newest tokens, always read, including the current one."
    )
    dense_below: int | str = options.integer(
        "auto",
        ge=0,
        words=("auto",),
        unit="tokens",
        help='Contexts shorter than this are read densely; "auto" is the break-even length by the cost '
        "constants in use, shipped or from `keyhole tune`.",
    )
    place: str = placing.place()
    kv_dtype: str = options.choice(
        "auto",
        KV_DTYPES,
        renamed=(("full", "auto"),),
        help='Precision of stored keys and values: "auto" is the dtype of the model; "int8" to "int2" '
        "quantise.",
    )
    block_cache: int | str = placing.block_cache()
    block_eviction: str = placing.block_eviction()
    resident: str = placing.resident()

    def __post_init__(self) -> None:
        super().__post_init__()
        placing.check_blocks(self)

    def letters(self, head_dim: int, kv_heads: int) -> dict[str, float]:  # noqa: ARG002
        """Values of the additional letters in the formulas of `facts`, for this head size and count."""
        return {}

    def storage(self, info: ModelInfo) -> list[Storage] | None:
        if (self.place, self.kv_dtype) == ("device", "auto"):
            return None
        return placing.storages(self, info, self.kv_dtype, self.window, placing.slot_tokens(self))


def _option(name: str, value: Any) -> str:
    if isinstance(value, Budget) and value.varies:
        return str(value)
    # Identifiers need no quotes; other text, such as a path, does.
    quoted = isinstance(value, str) and not value.isidentifier()
    return f"{name}={value!r}" if quoted else f"{name}={value}"
