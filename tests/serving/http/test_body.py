"""Bodies: types, encodings, size, depth and number of values."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhole.serving.http.body import MOST_DEPTH, MOST_VALUES, parse
from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.settings import Settings
from tests.serving.http.clients import client_of
from tests.serving.http.test_chat import HI, PATH

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES, st.booleans())
def test_what_is_json_is_read(value, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        with pytest.raises(ApiError):
            parse(body)
    else:
        assert parse(body) == value


@given(st.binary())
def test_what_is_none_is_refused(data):
    try:
        expected = json.loads(data.decode(), parse_constant=lambda _: 1 / 0)
    except (ValueError, ZeroDivisionError):
        with pytest.raises(ApiError):
            parse(data)
    else:
        assert parse(data) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe{\x00}\x00",
        b"{\"a\": NaN}",
        b"[1e999]",
        b"[-Infinity]",
        b"[" + b"9" * 5000 + b"]",
        b'["\\ud800"]',
        b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" + b"0," * (MOST_VALUES + 1) + b"0]",
        b"\xef\xbb\xbf{}",
    ],
)  # fmt: skip
def test_what_costs_too_much_or_means_nothing_is_refused(body):
    with pytest.raises(ApiError) as refusal:
        parse(body)
    assert refusal.value.code == "invalid_json"


def test_brackets_within_strings_are_no_depth():
    text = '[{"\\"' * 10_000
    assert parse(json.dumps({"text": text}).encode()) == {"text": text}
    deep = b"[" * MOST_DEPTH + b"]" * MOST_DEPTH
    assert parse(deep)


def test_a_body_beyond_its_bound_is_413_stated_or_not(scheduler):
    with client_of(scheduler, Settings(model="tiny", most_prompt=1000)) as client:
        assert client.post(PATH, json=HI).status_code == 200
        big = json.dumps(HI | {"user": "x" * 1000}).encode()
        headers = {"content-type": "application/json"}
        for content in (big, iter([big[:500], big[500:]])):
            response = client.post(PATH, content=content, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/xml"])
def test_what_does_not_say_that_it_is_json_is_415(refused, kind):
    headers = {} if kind is None else {"content-type": kind}
    refused(PATH, content=json.dumps(HI).encode(), headers=headers, status=415)


def test_compressed_bodies_are_415(refused):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    refused(PATH, content=b"x", headers=headers, status=415)


@pytest.mark.parametrize("body", ["[]", "1", '"x"', "null", "true"])
def test_json_that_is_no_object_is_refused(refused, body):
    refused(PATH, content=body, headers={"content-type": "application/json; charset=utf-8"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", PATH, 405),
        ("PUT", "/v1/models", 405),
        ("GET", "/v2", 404),
        ("POST", "/v1/chat/completions/", 404),
    ],
)
def test_paths_and_methods_that_are_not_there_are_told_in_openais_form(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["message"]
