"""The page as a server gives it, with the real scheduler and the embedded model behind it."""

import json
from importlib.util import find_spec

import pytest

from keyhole.documents.library import Library
from tests.view.conftest import Opened

MISSING = [name for name in ("starlette", "uvicorn", "python_multipart") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason="keyhole[server] is not installed")
TEXT = "The tide is full, the moon lies fair upon the straits. The code of the boat-house is 481. " * 12
MOST = 12
QUESTION = "What is the code?"


@pytest.fixture
def server(tmp_path):
    import keyhole
    from keyhole.generation import load_model
    from tests.serving.http.whole import whole_server

    library = Library(tmp_path / "store", quota=1 << 30)
    with whole_server(load_model(keyhole.default_model()), library) as found:
        found.url, found.library = f"http://127.0.0.1:{found.port}", library
        yield found


@pytest.fixture
def shown(browser):
    found = Opened(browser)
    found.page.set_default_timeout(120_000)
    found.page.route("**/v1/chat/completions", shortened)
    yield found
    assert {url.split("/")[2].split(":")[0] for url in found.requests} == {"127.0.0.1"}
    found.requests.clear()
    found.close()


def shortened(route):
    """The page bounds no answer; these would be long ones."""
    route.continue_(post_data=json.dumps(json.loads(route.request.post_data) | {"max_tokens": MOST}))


def said(shown, text):
    shown.page.locator(".chat-said", has_text=text).wait_for()


def ask(shown, question):
    shown.page.get_by_label("Question", exact=True).fill(question)
    shown.page.get_by_role("button", name="Ask", exact=True).click()
    said(shown, "of the context")


def test_a_document_is_added_asked_and_looked_into(server, shown, tmp_path):
    file = tmp_path / "harbour.txt"
    file.write_text(TEXT)
    shown.page.goto(server.url)
    said(shown, "keyhole is ready")
    shown.page.locator('input[type="file"]').set_input_files(file)
    said(shown, "harbour is stored")
    ask(shown, QUESTION)
    expected = server.library.ask("harbour", QUESTION, max_new_tokens=MOST).text
    assert shown.page.locator(".turn.assistant").text_content() == expected
    shown.page.wait_for_selector(".pane p")
    assert "".join(shown.page.locator(".pane p").all_text_contents()).count("481") >= 12
    token = shown.page.locator(".tokens [data-step]").last
    token.click()
    shown.settle()
    assert token.get_attribute("aria-selected") == "true"
    marked = shown.marked()
    assert 0 < len(marked) < len(server.library.document("harbour").tokens)
    assert f"{len(marked)} tokens" in shown.page.locator(".measures").inner_text()


def test_a_conversation_without_a_document(server, shown):
    shown.page.goto(server.url)
    said(shown, "keyhole is ready")
    shown.page.get_by_label("Method, such as").fill("nosuch")
    shown.page.get_by_label("Question", exact=True).fill("Who is at sea?")
    shown.page.get_by_role("button", name="Ask", exact=True).click()
    said(shown, "unknown method")
    shown.page.get_by_label("Method, such as").fill("quest(budget=0.2)")
    ask(shown, "Who is at sea?")
    said(shown, "quest(budget=0.2")
    shown.page.wait_for_selector(".pane p")
    assert server.scheduler.state().finished.keys() <= {"stop", "length"}
    shown.errors[:] = [error for error in shown.errors if "400" not in error]
