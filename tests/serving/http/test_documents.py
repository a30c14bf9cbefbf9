"""`/v1/documents`: what is stored, seen, changed and forgotten, and how a chat names it."""

import pytest

from keyhole import default_model
from keyhole.core.errors import DamagedStoreError
from keyhole.documents.library import Library
from keyhole.generation import load_model
from keyhole.serving.requests import Failed
from tests.serving.http.clients import client_of
from tests.serving.http.fakes import FakeScheduler
from tests.serving.http.test_chat import HI, PATH, events_of

DOCUMENTS = "/v1/documents"
TEXT = "The tide is full. The secret code of amber falcon is 481. The sea is calm."
AMBER = {"name": "amber", "text": TEXT, "method": "pqcache(budget=0.2)"}


@pytest.fixture
def scheduler(tmp_path):
    """Documents are read by the embedded model; answers stay made up."""
    return FakeScheduler(library=Library(tmp_path / "store", quota=1 << 30))


@pytest.fixture(scope="module")
def loaded():
    return load_model(default_model())


def test_a_text_is_stored_listed_and_read_again(client, scheduler):
    made = client.post(DOCUMENTS, json=AMBER | {"pinned": True, "ttl": 60}).json()
    assert (made["id"], made["object"], made["status"]) == ("amber", "document", "ready")
    assert (made["pinned"], made["ttl"], made["method"]) == (True, 60.0, "pqcache(budget=0.2)")
    assert made["tokens"] == made["stored_tokens"] == len(scheduler.library.document("amber").tokens)
    assert client.get(f"{DOCUMENTS}/amber").json() == made
    assert client.get(DOCUMENTS).json() == {"object": "list", "data": [made], "has_more": False}
    text = client.get(f"{DOCUMENTS}/amber/text")
    assert (text.text, text.headers["content-type"]) == (TEXT, "text/plain; charset=utf-8")
    assert str(scheduler.library.path) not in str(made)


def test_a_document_is_changed_and_forgotten(client, scheduler):
    client.post(DOCUMENTS, json=AMBER | {"ttl": 60})
    path = f"{DOCUMENTS}/amber"
    changed = client.patch(path, json={"pinned": True}).json()
    assert (changed["pinned"], changed["ttl"]) == (True, 60.0)
    changed = client.patch(path, json={"pinned": False, "ttl": None}).json()
    assert (changed["pinned"], changed["ttl"]) == (False, None)
    gone = client.delete(path).json()
    assert (gone["id"], gone["deleted"]) == ("amber", True)
    assert gone["freed_bytes"] > 0
    assert client.get(path).status_code == client.delete(path).status_code == 404
    assert scheduler.library.documents() == []


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("notes.txt", TEXT.encode(), TEXT),
        ("notes.md", b"# Head\n\nwords", "# Head\n\nwords"),
        ("notes.html", b"<html><p>one<script>x</script><p>two", "one\ntwo"),
        ("notes.txt", "Grüße".encode("utf-16"), "Grüße"),
    ],
)
def test_a_file_is_read_as_the_command_line_reads_it(client, scheduler, name, data, text):
    found = client.post(
        DOCUMENTS, files={"file": (f"C:\\some\\..\\where/{name}", data)}, data={"pinned": "true"}
    )
    assert found.json()["id"] == "notes"
    (new,) = scheduler.documents
    assert (new.text, new.pinned) == (text, True)


def test_a_pdf_is_read(client, scheduler):
    pytest.importorskip("pypdf", reason="pypdf is not installed")
    response = client.post(DOCUMENTS, files={"file": ("a.pdf", b"%PDF-1.4 broken")})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_file")
    assert "PDF" in response.json()["error"]["message"]
    assert not scheduler.documents


def test_progress_is_told_as_events(client):
    events = events_of(client.post(DOCUMENTS, json=AMBER | {"stream": True}).text)
    assert [each["type"] for each in events] == ["document.queued", "document.reading", "document.ready"]
    assert events[-1]["document"]["id"] == "amber"


@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_is_told(client, scheduler, stream):
    scheduler.failure = Failed("the store is full", "document")
    response = client.post(DOCUMENTS, json=AMBER | {"stream": stream})
    assert response.status_code == (200 if stream else 409)
    error = events_of(response.text)[-1] if stream else response.json()
    assert error["error"]["message"] == "the store is full"


def test_documents_of_other_models_are_neither_seen_nor_replaced(client, scheduler, loaded):
    scheduler.library.add(text=TEXT, name="amber", model=loaded.model, tokenizer=loaded.tokenizer)
    assert client.get(DOCUMENTS).json()["data"] == []
    for response in (client.get(f"{DOCUMENTS}/amber"), client.delete(f"{DOCUMENTS}/amber")):
        assert response.status_code == 404
    assert client.post(DOCUMENTS, json=AMBER).status_code == 409


NAMED = [
    {"x_keyhole": {"document": "amber"}},
    {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "amber"}},
                                               {"type": "text", "text": "Hi"}]}]},
]  # fmt: skip


@pytest.mark.parametrize("named", NAMED)
def test_a_chat_names_a_document_which_stands_before_the_question(client, scheduler, named):
    client.post(DOCUMENTS, json=AMBER)
    assert client.post(PATH, json=HI | named).status_code == 200
    (request,) = scheduler.requests
    ids = scheduler.library.document("amber").tokens.tolist()
    assert (request.document, list(request.prompt[: len(ids)])) == ("amber", ids)
    assert request.prompt == scheduler.document_prompt("amber", HI["messages"])


def test_a_response_names_a_document_in_its_input(client, scheduler):
    client.post(DOCUMENTS, json=AMBER)
    content = [{"type": "input_file", "file_id": "amber"}, {"type": "input_text", "text": "Hi"}]
    asked = {"model": "tiny", "input": [{"role": "user", "content": content}]}
    assert client.post("/v1/responses", json=asked).status_code == 200
    assert scheduler.requests[0].document == "amber"


def test_a_document_that_is_unknown_or_elsewhere_is_refused(refused):
    assert refused(PATH, HI | {"x_keyhole": {"document": "none"}}, status=404)["code"] == "document_not_found"
    part = {"type": "file", "file": {"file_id": "amber"}}
    text = {"type": "text", "text": "x"}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for content in ([text, part], [part, part]):
        refused(PATH, HI | {"messages": [{"role": "user", "content": content}]})
    refused(PATH, HI | {"messages": [*messages, {"role": "user", "content": [part, text]}]})
    refused(
        PATH, HI | {"messages": [{"role": "user", "content": [part]}], "x_keyhole": {"document": "other"}}
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "a"}, "text"),
        ({"text": "x"}, "name"),
        ({"name": "a", "text": " "}, "text"),
        ({"name": "a\nb", "text": "x"}, "name"),
        ({"name": "-", "text": "x"}, "name"),
        *[({"name": name, "text": "x"}, "name") for name in ("..", "a/../b", "./a", "a/text")],
        ({"name": "a" * 81, "text": "x"}, "name"),
        ({"name": "a", "text": 5}, "text"),
        ({"name": "a", "text": "x", "ttl": -1}, "ttl"),
        ({"name": "a", "text": "x", "pinned": "yes"}, "pinned"),
        ({"name": "a", "text": "x", "kv_dtype": "int5"}, "kv_dtype"),
        ({"name": "a", "text": "x", "method": "sale(thresholds='/etc')"}, "method"),
        ({"name": "a", "text": "x", "path": "/etc/passwd"}, "path"),
        ({"name": "a", "text": "x", "model": "other"}, "model"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(refused, body, param):
    assert refused(DOCUMENTS, body)["param"] == param


def test_forms_without_a_file_are_refused(refused):
    assert refused(DOCUMENTS, files={"other": ("a.txt", b"x")})["param"] == "file"
    assert refused(DOCUMENTS, files={"file": ("a.txt", b"\0\1")})["code"] == "invalid_file"
    headers = {"content-type": "multipart/form-data"}
    refused(DOCUMENTS, content=b"--x", headers=headers)
    refused(DOCUMENTS, content=b"--x", headers={"content-type": "multipart/form-data; boundary=y"})


def test_a_server_without_a_store_says_so():
    with client_of(FakeScheduler()) as client:
        assert client.get(DOCUMENTS).status_code == 501
        assert client.post(DOCUMENTS, json=AMBER).status_code == 501


@pytest.mark.parametrize(
    ("made", "status"),
    [
        (lambda path: DamagedStoreError(f"{path}/index.sqlite is damaged"), 400),
        (lambda path: OSError(28, "No space left on device", str(path)), 503),
        (lambda path: TimeoutError(f"{path}/index.sqlite has been busy for 120 s"), 503),
    ],
)
def test_errors_of_the_store_tell_no_paths(refused, scheduler, monkeypatch, made, status):
    path = scheduler.library.store.path

    def documents():
        raise made(path)

    monkeypatch.setattr(scheduler.library, "documents", documents)
    scheduler.error = made(path)
    for error in (refused(DOCUMENTS, AMBER, status), refused(PATH, HI, status)):
        assert str(path) not in error["message"]
        assert "store" in error["message"]
