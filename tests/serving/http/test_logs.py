"""The log has ids, sizes, times and statuses, and nothing that was said; metrics count the same."""

import logging

import pytest

from keyhole.serving.http.logs import route_of
from tests.serving.http.test_chat import HI, PATH

SECRET = "swordfish"


@pytest.fixture
def logged(caplog):
    with caplog.at_level(logging.INFO, logger="keyhole.serving"):
        yield caplog


def test_a_request_is_one_line_without_its_words(client, scheduler, logged):
    scheduler.text = f"It is {SECRET}"
    body = HI | {"messages": [{"role": "user", "content": SECRET}], "user": SECRET}
    response = client.post(f"{PATH}?{SECRET}", json=body, headers={"x-request-id": SECRET})
    client.post(PATH, json=body | {"stream": True})
    client.get(f"/v1/documents/{SECRET}")
    client.post(PATH, json=body | {SECRET: SECRET})
    lines = [record.getMessage() for record in logged.records if record.name == "keyhole.serving"]
    assert len(lines) == 4
    assert SECRET not in "".join(lines)
    assert response.headers["x-request-id"] in lines[0]
    assert "POST /v1/chat/completions 200" in lines[0]
    assert "cached=4 written=2 completion=15" in lines[0]
    assert lines[1].split("in=")[1].split(" ", 2)[2] == lines[0].split("in=")[1].split(" ", 2)[2]
    assert "GET /v1/documents/{id} 501" in lines[2]
    assert "400" in lines[3]


def test_paths_are_logged_by_a_few_forms():
    assert route_of("/v1/models") == "/v1/models"
    assert route_of("/v1/documents/a/b") == "/v1/documents/{id}"
    assert route_of("/v1/documentsx") == route_of("/etc/passwd") == "other"


def test_metrics_count_requests_and_show_the_scheduler(client):
    client.post(PATH, json=HI)
    client.get("/nowhere")
    text = client.get("/metrics").text
    assert 'keyhole_http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'keyhole_http_requests_total{method="GET",route="other",status="404"} 1.0' in text
    assert 'keyhole_first_token_seconds_count{route="/v1/chat/completions"} 1.0' in text
    assert 'keyhole_tokens_total{kind="cached"} 9.0' in text
    assert "keyhole_waiting 1.0" in text


def test_health_says_whether_requests_are_served(client, scheduler):
    assert (client.get("/health").status_code, client.head("/health").status_code) == (200, 200)
    scheduler.alive = False
    response = client.get("/health")
    assert (response.status_code, response.json()) == (503, {"status": "failed"})


def test_answers_are_neither_kept_nor_guessed_at_by_browsers(client):
    headers = client.get("/v1/models").headers
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert "server" not in headers
