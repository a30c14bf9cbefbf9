"""The page of a server, against answers that are made up: documents, a conversation, its record, errors."""

import base64
import json

import pytest

from keyhole.view import page
from keyhole.view.file import to_json
from tests.view.conftest import Opened
from tests.view.made import made

ORIGIN = "http://keyhole.test"
DOCUMENT = {"id": "handbook", "status": "ready", "tokens": 1234}


class Server:
    """What a server answers, and what it was asked."""

    def __init__(self, record):
        self.record, self.asked, self.documents, self.key = record, [], [], None

    def answer(self, route):
        request = route.request
        path = request.url.removeprefix(ORIGIN)
        if path == "/":
            return route.fulfill(body=page(server=True), content_type="text/html")
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return self.json(route, {"error": {"message": "no such key"}}, 401)
        if path == "/v1/models":
            return self.json(route, {"data": [{"id": "small"}]})
        if path == "/v1/documents" and request.method == "GET":
            return self.json(route, {"data": self.documents})
        if path == "/v1/documents":
            self.asked.append(request.post_data)
            self.documents = [DOCUMENT]
            reading = {"type": "document.reading", "done": 5, "total": 1234}
            return self.events(route, reading, {"type": "document.ready", "document": DOCUMENT})
        assert path == "/v1/chat/completions"
        self.asked.append(json.loads(request.post_data))
        return self.events(route, *self.chunks())

    def chunks(self):
        yield {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
        for word in ("It ", "is <b>481</b>", "."):
            yield {"choices": [{"delta": {"content": word}}]}
        held = base64.b64encode(to_json(self.record)).decode()
        yield {"choices": [], "x_keyhole": {"method": "pqcache", "share": 0.073, "record": [held]}}

    @staticmethod
    def json(route, value, status=200):
        route.fulfill(status=status, body=json.dumps(value), content_type="application/json")

    @staticmethod
    def events(route, *values):
        said = ": place 1\n\n" + "".join(f"data: {json.dumps(value)}\n\n" for value in values)
        route.fulfill(body=f"{said}data: [DONE]\n\n", content_type="text/event-stream")


@pytest.fixture
def served(browser):
    shown, server = Opened(browser), Server(made(tokens=200, steps=3))
    shown.page.route("**/*", server.answer)
    yield shown, server
    assert {url.split("/")[2] for url in shown.requests} == {"keyhole.test"}
    shown.requests.clear()
    shown.close()


def ready(shown):
    shown.page.goto(ORIGIN)
    shown.page.wait_for_selector("html[data-ready]")


def said(shown, text):
    """Wait until the page says so; what evaluates strings is forbidden there."""
    shown.page.locator(".chat-said", has_text=text).wait_for()


def ask(shown, question):
    shown.page.get_by_label("Question", exact=True).fill(question)
    shown.page.get_by_role("button", name="Ask", exact=True).click()


def test_an_answer_and_what_it_read(served):
    shown, server = served
    ready(shown)
    ask(shown, "What is the code?")
    shown.page.wait_for_selector(".pane p")
    assert shown.page.locator(".turn.assistant").inner_text() == "It is <b>481</b>."
    assert "read 7.3% of the context" in shown.page.locator(".chat-said").inner_text()
    assert shown.page.locator(".run .question").first.inner_text() == "What is the code?"
    assert sorted(shown.marked()) == server.record.union(0).tolist()
    ask(shown, "And then?")
    shown.page.locator(".turn.assistant", has_text="481").nth(1).wait_for()
    one, other = server.asked
    assert one["x_keyhole"] == {"record": True}
    assert (one["model"], one["stream"]) == ("small", True)
    assert [message["role"] for message in other["messages"]] == ["user", "assistant", "user"]
    assert other["messages"][1]["content"] == "It is <b>481</b>."


def test_a_document_is_added_and_asked_about(served, tmp_path):
    shown, server = served
    file = tmp_path / "handbook.txt"
    file.write_text("The code is 481.")
    ready(shown)
    shown.page.locator('input[type="file"]').set_input_files(file)
    said(shown, "handbook is stored: 1,234 tokens")
    assert shown.page.locator("#document").input_value() == "handbook"
    assert "handbook.txt" in server.asked[0]
    shown.page.get_by_label("Method, such as").fill("quest(budget=0.1)")
    ask(shown, "What is the code?")
    shown.page.wait_for_selector(".pane p")
    asked = server.asked[1]["x_keyhole"]
    assert asked == {"record": True, "document": "handbook", "method": "quest(budget=0.1)"}


def test_a_key_is_asked_for(served):
    shown, server = served
    server.key = "secret"
    ready(shown)
    key = shown.page.get_by_label("API key")
    key.wait_for()
    assert "no such key" in shown.page.locator(".chat-said").inner_text()
    key.fill("secret")
    key.press("Enter")
    said(shown, "small is ready")
    # The browser itself notes refused requests.
    shown.errors[:] = [error for error in shown.errors if "401" not in error]


def test_what_fails_can_be_asked_again(served):
    shown, server = served
    server.chunks = lambda: iter([{"error": {"message": "out of memory"}}])
    ready(shown)
    ask(shown, "What is the code?")
    said(shown, "out of memory")
    assert shown.page.get_by_label("Question", exact=True).input_value() == "What is the code?"
