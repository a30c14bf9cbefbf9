"""The page that shows records, as one file that loads nothing.

Its parts are plain ES modules, a style sheet and HTML in `static/`. They are joined here: modules become one
script without imports, and the Content Security Policy allows that script and that style alone, by hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from keyhole.view.file import to_json
from keyhole.view.record import Record

_MAIN = "main.js"
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function|class|const|let)", re.MULTILINE)


def page(records: Sequence[Record | bytes] | None = None, server: bool = False) -> bytes:
    """The page as HTML.

    Args:
        records: one, or two to be shown side by side, as records or as their files.
        server: the page may ask the server that it comes from.

    Raises:
        ValueError: more than two records.
    """
    held = [one if isinstance(one, bytes) else to_json(one) for one in records or ()]
    if len(held) > 2:
        raise ValueError(f"the page shows 1 or 2 records, not {len(held)}")
    script, style = _script(_MAIN), _read("page.css")
    policy = ["default-src 'none'", f"script-src {_hashed(script)}", f"style-src {_hashed(style)}"]
    policy += ["img-src data:", *(["connect-src 'self'"] if server else [])]
    policy += ["base-uri 'none'", "form-action 'none'"]
    parts = {"policy": "; ".join(policy), "style": style, "script": script}
    parts["server"] = " data-server" if server else ""
    parts["records"] = "\n".join(map(_data, held))
    return re.sub(r"@(\w+)@", lambda found: parts[found[1]], _read("page.html")).encode("utf-8", "replace")


def _data(record: bytes) -> str:
    """A record as data in HTML: no text of a document can end the element, or begin another."""
    text = record.decode("utf-8", "replace").replace("<", "\\u003c").replace(">", "\\u003e")
    return f'<script type="application/json" class="record">{text}</script>'


@cache
def _script(main: str) -> str:
    """A module and all that it imports, each once and before what needs it."""
    order: list[str] = []

    def visit(name: str) -> None:
        for needed in _IMPORT.findall(_read(name)):
            if needed not in order:
                visit(needed)
        order.append(name)

    visit(main)
    return "".join(f"// {name}\n{_EXPORT.sub('', _IMPORT.sub('', _read(name)))}" for name in order)


def _hashed(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


@cache
def _read(name: str) -> str:
    return files("keyhole.view").joinpath("static", name).read_text(encoding="utf-8")
