"""The page as a file: one piece, which allows nothing but its own script and style."""

import base64
import hashlib
import re
from importlib.resources import files

import pytest

from keyhole.view import page
from tests.view.made import made

STATIC = files("keyhole.view").joinpath("static")
MODULES = {
    file.name: file.read_text(encoding="utf-8") for file in STATIC.iterdir() if file.name.endswith(".js")
}


def hashed(text):
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


@pytest.mark.parametrize("server", [False, True])
def test_the_policy_allows_this_script_and_style_only(server):
    html = page([made()], server=server).decode()
    policy = dict(
        part.strip().split(" ", 1) for part in re.search(r'Policy" content="([^"]+)"', html)[1].split(";")
    )
    [script] = re.findall(r'<script type="module">(.*?)</script>', html, re.DOTALL)
    [style] = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert policy.pop("default-src") == "'none'"
    assert policy.pop("script-src") == hashed(script)
    assert policy.pop("style-src") == hashed(style)
    assert policy.pop("img-src") == "data:"  # the icon
    assert policy.pop("connect-src", None) == ("'self'" if server else None)
    assert policy == {"base-uri": "'none'", "form-action": "'none'"}
    assert not re.search(r"https?:|//[a-z]", html.replace("</", "").split("</style>")[0])
    assert not re.search(r"\s(?:on\w+|style)=", re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL))


def test_modules_can_be_one_script():
    """Names at the top are different, imports exist, and nothing else is imported or exported."""
    tops = [
        name
        for text in MODULES.values()
        for name in re.findall(
            r"^(?:export )?(?:async )?(?:function\*?|class|const|let) (\w+)", text, re.MULTILINE
        )
    ]
    assert len(tops) == len(set(tops))
    for text in MODULES.values():
        for names, source in re.findall(
            r'^import \{ ([^}]+) \} from "\./([\w-]+\.js)";$', text, re.MULTILINE
        ):
            for name in names.split(", "):
                assert re.search(
                    rf"^export (?:async )?(?:function|class) {name}\b", MODULES[source], re.MULTILINE
                )
    joined = page().decode()
    assert not re.search(r"^(?:import|export) ", joined, re.MULTILINE)
    assert all(f"// {name}\n" in joined for name in MODULES)


def test_parts_are_of_a_size_to_be_read():
    assert all(text.count("\n") <= 200 for text in MODULES.values())


def test_two_records_at_most():
    with pytest.raises(ValueError, match="1 or 2 records, not 3"):
        page([made()] * 3)
