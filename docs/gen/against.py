"""python docs/gen/against.py: docs/results/against.md and its plots, from the files of `keyhole bench against` beside it.

Files are docs/results/against/NAME.json; each becomes a section and NAME.svg. The first by name leads README and page.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

DOCS = Path(__file__).parents[1]
SOURCE = DOCS / "results" / "against"

if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent / "src"))

from keyhole.bench.against.figures import Measured, read_figures  # noqa: E402
from keyhole.bench.against.plot import draw  # noqa: E402
from keyhole.bench.against.tables import markdown  # noqa: E402

_HEAD = """\
# Against other engines

Made by `docs/gen/against.py` from the files that [`keyhole bench against`](../how-to/against.md) writes. The last columns are
times of the other engine divided by Keyhole's: above 1 Keyhole is faster. In the plots lines of other engines are dashed,
and markers are hollow where the tokens in the cache are synthetic.
"""


def measured() -> dict[str, Measured]:
    """All files by name."""
    return {path.stem: read_figures(path) for path in sorted(SOURCE.glob("*.json"))}


def page(found: dict[str, Measured]) -> str:
    """The Markdown of all runs."""
    return "\n".join([_HEAD, *(_section(name, one) for name, one in found.items())])


def title(one: Measured) -> str:
    """What was measured, and on what."""
    known = one.conditions
    weights = "random weights, " if known["random_weights"] else ""
    return f"{known['file'].removesuffix('.gguf')}, {weights}{known['dtype']}, {known['threads']} threads, {known['cpu']}"


def draw_all(found: dict[str, Measured]) -> None:
    """A plot for each file."""
    for name, one in found.items():
        if lengths(one) > 1:
            draw(one.figures, SOURCE / f"{name}.svg", title=title(one))


def lengths(one: Measured) -> int:
    """How many lengths were measured; one alone makes no plot."""
    return len({figure.tokens for figure in one.figures})


def _section(name: str, one: Measured) -> str:
    known = one.conditions
    versions = ", ".join(f"{package} {version}" for package, version in known["versions"].items())
    about = [f"{engine}: {_plain(line)}" for engine, line in known["engines"].items()]
    lines = [
        f"## {title(one)}",
        "",
        f"`{known['command']}`, measured on {known['date']}; {known['cores']} cores, {known['system']}, {versions}.",
        "",
        *([f"![step time over context length](against/{name}.svg)", ""] if lengths(one) > 1 else []),
        *_items([*about, *known["notes"]]),
        "",
        markdown(one.figures),
    ]
    return "\n".join(lines)


def _items(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _plain(line: str) -> str:
    """llama.cpp separates what it was built for by bars, and says of each that it is 1."""
    return re.sub(r"\s*\|\s*", ", ", line.replace(" = 1", "")).strip(", ")


if __name__ == "__main__":
    everything = measured()
    if not everything:
        sys.exit(f"there is no file in {SOURCE}; write some with `keyhole bench against --json`")
    (DOCS / "results" / "against.md").write_text(page(everything), encoding="utf-8")
    if "--no-plots" not in sys.argv:
        draw_all(everything)
