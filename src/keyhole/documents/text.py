"""Files as text: plain text, Markdown, HTML, PDF. Nothing here imports torch."""

from __future__ import annotations

import codecs
import os
import re
import stat
import sys
from contextlib import suppress
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

_HTML = (".html", ".htm", ".xhtml")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"))
_MARKS += ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_UNSEEN = {"script", "style", "title", "template", "noscript", "svg"}
_CHARSET = re.compile(rb"<meta[^>]*charset\s*=\s*[\"']?([\w-]+)", re.IGNORECASE)
_NAMED_WITHIN = 4096  # bytes of a page in which its encoding is named
_VOID = {"br", "hr", "img", "input", "link", "meta", "area", "base", "col", "embed", "source", "track", "wbr"}
_BREAKS = {"p", "div", "br", "li", "tr", "table", "section", "article", "blockquote", "pre", "ul", "ol", "hr"}
_BREAKS |= {f"h{level}" for level in range(1, 7)} | {"header", "footer", "main", "dt", "dd", "figcaption"}


def read_texts(files: list[str]) -> str:
    """The text of files, in this order; several are headed by their names.

    Raises:
        ValueError: one cannot be read, or is not text, with its name.
    """
    if not files:
        raise ValueError("no file was given; give at least one")
    texts = [read_text_of(file) for file in files]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(
        f"# {Path(file).name}\n\n{text.strip()}" for file, text in zip(files, texts, strict=True)
    )


def is_readable(file: str) -> bool:
    """Whether there is a file or a pipe of this path; False, too, for what cannot be a path."""
    path = os.path.expanduser(file)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def check_text(what: str, text: str) -> None:
    """Raise ValueError for half a character in a text, as there is where bytes are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} is not Unicode text: half a character at {error.start:,}; decode its bytes anew, "
            "or leave that out"
        ) from error


def check_files(files: list[str]) -> None:
    """Raise ValueError for a file that is missing or of a kind that cannot be read here."""
    for file in files:
        if file == "-":
            continue
        path = Path(file).expanduser()
        if not is_readable(file):
            what = "is a directory; give its files" if os.path.isdir(path) else "does not exist"
            raise ValueError(f"the file {str(path)!r} {what}")
        if path.suffix.lower() == ".pdf":
            _check_pdf(repr(str(path)))


def read_text_of(file: str) -> str:
    """The text of one file; "-" is stdin."""
    check_files([file])
    name, data = _bytes(file)
    return text_of(name, Path(file).suffix.lower(), data)


def text_of(name: str, suffix: str, data: bytes) -> str:
    """The text of a file's bytes.

    Args:
        name: of the file, in messages.
        suffix: of its name, in lower case.
    """
    if suffix == ".pdf" or data.startswith(b"%PDF-"):
        _check_pdf(name)
        text = _pdf_text(name, data)
    else:
        text = _declared(data) or _decoded(name, data)
        if suffix in _HTML or text.lstrip()[:15].lower().startswith(("<!doctype html", "<html")):
            text = html_text(text)
    if not text.strip():
        raise ValueError(f"{name} holds no text")
    return text


def html_text(html: str) -> str:
    """The text of a page, a line for each block of it."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept).strip()


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._kept = 0  # open elements whose lines stay
        self._unseen: list[str] = []  # open elements whose text is not shown, innermost last

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag in _UNSEEN and tag not in _VOID:
            self._unseen.append(tag)
        self._kept += tag == "pre"
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._unseen:
            del self._unseen[self._unseen.index(tag) :]
        self._kept = max(0, self._kept - (tag == "pre"))
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.parts.append(data if self._kept else data.replace("\n", " "))

    def _break(self, tag: str) -> None:
        if tag in _BREAKS:
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append("\t")


def _bytes(file: str) -> tuple[str, bytes]:
    name = "stdin" if file == "-" else f"the file {str(Path(file).expanduser())!r}"
    try:
        return name, sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}") from error


def _decoded(name: str, data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _by(name, data, encoding)
    if b"\0" in data:
        raise ValueError(f"{name} is binary; give text, Markdown, HTML or PDF")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    # Bytes that no text of this encoding has tell binary files from it.
    text = data.decode("cp1252", errors="replace")
    odd = sum(1 for char in text if char == "\ufffd" or (ord(char) < 32 and char not in "\t\n\r\f"))
    if odd > len(text) // 1000:
        raise ValueError(f"{name} is binary or of an unknown encoding; give UTF-8 text")
    return text


def _declared(data: bytes) -> str | None:
    """A page in the encoding that it names, if that is neither UTF-8 nor a mark's; None otherwise."""
    named = _CHARSET.search(data[:_NAMED_WITHIN])
    if named is None or b"\0" in data:
        return None
    with suppress(LookupError, UnicodeDecodeError):
        data.decode("utf-8")
        return None
    with suppress(LookupError, UnicodeDecodeError):
        return data.decode(named[1].decode())
    return None


def _by(name: str, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} begins as {encoding} text and is none: {error.reason}") from error


def _check_pdf(name: str) -> None:
    if find_spec("pypdf") is None:
        raise ValueError(f"{name} is a PDF, which needs pypdf; pip install 'keyhole[pdf]'")


def _pdf_text(name: str, data: bytes) -> str:
    from io import BytesIO

    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        pages = [page.extract_text() for page in PdfReader(BytesIO(data)).pages]
    except (PyPdfError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"cannot read {name} as PDF: {error}") from error
    text = "\n\n".join(page.strip() for page in pages)
    if not text.strip():
        raise ValueError(f"{name} is a PDF without text, perhaps of scanned pages; recognise its text first")
    return text
