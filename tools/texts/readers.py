"""From a file of a package to the plain text in it, one function for each form."""

from __future__ import annotations

import gzip
import html
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

_DROPPED = re.compile(r"<(script|style|pre|table|head|note|svg|ul)\b.*?</\1>", re.DOTALL | re.IGNORECASE)
_OSIS_BREAK = re.compile(r"<(?:div|lg|l)\b[^>]*\beID=[^>]*>|</title>|<chapter\b[^>]*\bsID=[^>]*>")
_HTML_BREAK = re.compile(r"</?(?:p|h[1-6]|li|div|dt|dd|blockquote|ol)\b[^>]*>", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")
_SCAN_LINE = re.compile(r"^(?:#+ .*|p\.\d+:\d+)$", re.MULTILINE)
_R_HEADER = 14  # "X\n", the versions of the form, of its writer and of its oldest reader
_SWORD_BLOCK = 12  # start, length and length unpacked of a block, each of 4 bytes, little-endian


def plain(path: Path) -> str:
    """UTF-8, compressed with gzip or not (dictd's .dz is gzip too)."""
    data = path.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")


def scanned(path: Path) -> str:
    """Pages of a scanned book, without the lines that name the scans and a misread sign."""
    return re.sub(r"\n\n\n+", "\n", _SCAN_LINE.sub("", plain(path).replace("Â¤ ", "")))


def webpage(path: Path) -> str:
    """The paragraphs of an HTML page, without code, tables and lists of links."""
    body = plain(path).split('id="toc_sub"')[-1].split("</script>")[-1]
    return _markup(body, _HTML_BREAK)


def r_object(index: int) -> Callable[[Path], str]:
    """The character vector that is the `index`-th object of an R package's data, a line for each element."""

    def read(path: Path) -> str:
        return "\n".join(_r_strings(list(_r_objects(path.read_bytes()))[index]))

    return read


def _r_objects(data: bytes) -> Iterator[bytes]:
    while data:
        inflate = zlib.decompressobj()
        yield inflate.decompress(data[4:])  # behind the unpacked length
        data = inflate.unused_data


def _r_strings(data: bytes) -> Iterator[str]:
    at = _R_HEADER + 4 + struct.unpack_from(">I", data, _R_HEADER)[0]  # behind the name of the encoding
    count = struct.unpack_from(">I", data, at + 4)[0]
    at += 8
    for _ in range(count):
        size = struct.unpack_from(">I", data, at + 4)[0]
        yield data[at + 8 : at + 8 + size].decode("utf-8-sig")
        at += 8 + size


def sword_block(index: int) -> Callable[[Path], str]:
    """One block, a book or a chapter, of a SWORD module's compressed text, from the path of its .?zz file."""

    def read(path: Path) -> str:
        blocks = path.with_suffix(path.suffix[:-1] + "s").read_bytes()
        start, size, _ = struct.unpack_from("<III", blocks, index * _SWORD_BLOCK)
        block = zlib.decompress(path.read_bytes()[start : start + size]).decode("utf-8")
        return _markup(block, _OSIS_BREAK)

    return read


def _markup(text: str, breaks: re.Pattern[str]) -> str:
    """One line for each paragraph, an empty line between them."""
    paragraphs = _TAG.sub("", breaks.sub("\0", _DROPPED.sub("", text))).split("\0")
    folded = (" ".join(html.unescape(paragraph).split()) for paragraph in paragraphs)
    return "\n\n".join(paragraph for paragraph in folded if paragraph)
