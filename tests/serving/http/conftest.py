"""A fake scheduler, and clients of an application in front of it."""

from importlib.util import find_spec

import pytest

MISSING = [name for name in ("starlette", "uvicorn", "python_multipart") if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []

HERMES = (
    "{% if tools %}{{ '<|tools|>' + (tools | tojson) + ' say <tool_call>{...}</tool_call>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + (m['content'] or '') + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def pytest_report_header():
    return "skipped: tests of the HTTP server, as keyhole[server] is not installed" if MISSING else None


@pytest.fixture
def scheduler():
    from tests.serving.http.fakes import FakeScheduler

    return FakeScheduler(chat_template=HERMES)


@pytest.fixture
def client(scheduler):
    from tests.serving.http.clients import client_of

    with client_of(scheduler) as found:
        yield found


@pytest.fixture
def live(scheduler):
    from tests.serving.http.clients import served

    with served(scheduler) as port:
        yield port


@pytest.fixture
def refused(client):
    """Posts what must be refused; returns the error object."""

    def post(path, body=None, status=400, **options):
        response = (
            client.post(path, json=body, **options) if body is not None else client.post(path, **options)
        )
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error

    return post
