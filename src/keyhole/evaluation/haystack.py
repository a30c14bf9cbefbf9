"""Real English text to hide needles in: what every Python environment has, or a user's own file."""

import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Literal

_DOCUMENT_SUFFIXES = {".md", ".rst", ".txt"}
_MARKUP = re.compile(r"[*`_|<>\[\]{}\\^~#]+|\.\. |::")
_SENTENCE_END = re.compile(r"(?<=[.!?]) +(?=[A-Z])")
_SENTENCE = re.compile(r"""[A-Z][A-Za-z0-9 ,.;:?!%&+='"()/-]{24,400}[.?!:]""")
_DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
_NUMBER = re.compile(r"(?<!\d)\d{3}(?!\d)")
_HELD_OUT_EVERY = 5
_LONGEST = 24  # characters of a word of prose; longer ones are addresses and names of code
_BLOCK = 8  # neighbouring sentences that stay together when the text is split


@dataclass(frozen=True)
class Haystack:
    """Sentences of prose in reading order; a prompt takes a run of them."""

    sentences: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.sentences:
            raise ValueError("a haystack needs at least one sentence of text")

    @cached_property
    def numbers(self) -> frozenset[int]:
        """The three-digit numbers of the text."""
        return frozenset(int(n) for n in _NUMBER.findall(" ".join(self.sentences)))

    @classmethod
    def from_text(cls, text: str) -> "Haystack":
        """Every sentence of `text`, white space folded."""
        folded = " ".join(text.split())
        return cls(tuple(part for part in _SENTENCE_END.split(folded) if part))

    @classmethod
    def from_file(cls, path: str | Path) -> "Haystack":
        """The text of a UTF-8 file; ValueError names a file that is missing, empty or not text."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot read the haystack file {str(path)!r}: {error.strerror}") from error
        if b"\0" in data:
            raise ValueError(f"the haystack file {str(path)!r} is binary, expected UTF-8 text")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"the haystack file {str(path)!r} is not UTF-8 text: {error.reason}") from error
        if not text.strip():
            raise ValueError(f"the haystack file {str(path)!r} is empty, expected UTF-8 text")
        return cls.from_text(text)

    @classmethod
    def from_environment(cls, part: Literal["all", "train", "held-out"] = "all") -> "Haystack":
        """Prose of Python's language reference, its standard library and the documents of installed packages.

        Blocks of neighbouring sentences are dealt to the two parts, which share no sentence.
        """
        if part not in ("all", "train", "held-out"):
            raise ValueError(f"part must be 'all', 'train' or 'held-out', got {part!r}")
        sentences = _environment_sentences()
        if part == "all":
            return cls(sentences)
        held_out = part == "held-out"
        return cls(tuple(s for i, s in enumerate(sentences) if _is_held_out(i) == held_out))


def _is_held_out(index: int) -> bool:
    return index // _BLOCK % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1


@cache
def _environment_sentences() -> tuple[str, ...]:
    documents = (sentence for text in _environment_documents() for sentence in prose(text))
    return tuple(dict.fromkeys(documents))


def prose(text: str) -> Iterator[str]:
    """The plain sentences of a marked-up document: no code, tables, links or headings."""
    for paragraph in re.split(r"\n\s*\n", text):
        folded = " ".join(_MARKUP.sub(" ", paragraph).split())
        yield from (s for s in _SENTENCE_END.split(folded) if _is_prose(s))


def _is_prose(sentence: str) -> bool:
    letters = sum(char.isalpha() or char == " " for char in sentence)
    plain = letters >= 0.88 * len(sentence) and max(map(len, sentence.split()), default=0) <= _LONGEST
    return plain and bool(_SENTENCE.fullmatch(sentence))


def _environment_documents() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    for source in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield from _DOCSTRING.findall(source.read_text(encoding="utf-8", errors="ignore"))
    distributions = {d.metadata["Name"].lower(): d for d in metadata.distributions() if d.metadata["Name"]}
    for name in sorted(distributions):
        yield from _package_documents(distributions[name])


def _package_documents(distribution: metadata.Distribution) -> Iterable[str]:
    body = distribution.metadata.get_payload()  # type: ignore[attr-defined]
    yield body if isinstance(body, str) else ""
    for file in sorted(distribution.files or []):
        if file.parts[0] == "keyhole":
            continue  # the shipped texts are a haystack of their own
        if file.suffix.lower() in _DOCUMENT_SUFFIXES or "LICEN" in file.name.upper():
            path = Path(str(file.locate()))
            if path.is_file():
                yield path.read_text(encoding="utf-8", errors="ignore")
