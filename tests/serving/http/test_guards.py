"""Who may use the server: Host, Origin and keys, and what the file of keys must be."""

import os

import pytest

from keyhole.serving.http.keys import Keys, read_keys
from keyhole.serving.http.settings import Settings, check_exposure, check_origin, listen_at, names_of
from tests.serving.http.clients import client_of
from tests.serving.http.test_chat import HI, PATH

KEY = "k" * 32
SITE = "https://chat.example.org"


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# for the team\n{'a' * 32}\n\n{KEY}\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "192.168.1.5"])
def test_addresses_and_localhost_are_served(client, host):
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", "127.0.0.1.nip.io"])
def test_other_names_are_refused_as_a_rebound_name_would_be(client, host):
    response = client.get("/v1/models", headers={"host": host})
    assert (response.status_code, response.json()["error"]["code"]) == (421, "unknown_host")


@pytest.mark.parametrize("host", ["", "a b", "x/y", "[::1", "a:b"])
def test_what_is_no_host_is_refused(client, host):
    assert client.get("/v1/models", headers={"host": host}).status_code == 400


def test_a_name_that_was_allowed_is_served(scheduler):
    settings = Settings(model="tiny", hosts=names_of("127.0.0.1", ["Box.local"]))
    with client_of(scheduler, settings) as client:
        assert client.get("/v1/models", headers={"host": "box.local:8000"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "http://localhost"]
)
def test_pages_of_other_sites_can_neither_read_nor_write(client, scheduler, origin):
    headers = {"origin": origin}
    assert client.post(PATH, json=HI, headers=headers).status_code == 403
    text = {"content-type": "text/plain", **headers}
    assert client.post(PATH, content=b"{}", headers=text).status_code == 403
    asked = {"access-control-request-method": "POST", **headers}
    preflight = client.options(PATH, headers=asked)
    assert preflight.status_code == 403
    assert "access-control-allow-origin" not in preflight.headers
    assert not scheduler.requests


def test_the_page_of_the_server_itself_may_use_it(client):
    response = client.post(PATH, json=HI, headers={"origin": "http://127.0.0.1:8000"})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


def test_a_named_origin_may_use_the_server_and_read_errors(scheduler):
    with client_of(scheduler, Settings(model="tiny", origins=frozenset([SITE]))) as client:
        headers = {"origin": SITE}
        asked = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        preflight = client.options(PATH, headers=headers | asked)
        assert (preflight.status_code, preflight.headers["access-control-allow-headers"]) == (
            204,
            "authorization",
        )
        for response in (
            preflight,
            client.post(PATH, json=HI, headers=headers),
            client.get("/no", headers=headers),
        ):
            assert response.headers["access-control-allow-origin"] == SITE
            assert "Origin" in response.headers["vary"]
        assert client.post(PATH, json=HI, headers={"origin": "https://other.example"}).status_code == 403


def test_every_request_needs_one_of_the_keys(scheduler, key_file):
    settings = Settings(model="tiny", keys=read_keys(key_file), metrics=True, origins=frozenset([SITE]))
    with client_of(scheduler, settings) as client:
        assert client.get("/health").status_code == 200
        for headers in (
            {},
            {"authorization": KEY},
            {"authorization": "Bearer x"},
            {"authorization": f"Basic {KEY}"},
        ):
            for path in ("/v1/models", "/metrics", "/v1/documents", "/nothing"):
                response = client.get(path, headers=headers)
                assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert (
            client.get("/v1/models", headers={"origin": SITE}).headers["access-control-allow-origin"] == SITE
        )
        for key in ("a" * 32, KEY):
            assert client.get("/v1/models", headers={"authorization": f"bearer {key}"}).status_code == 200
    assert KEY not in repr(settings)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620])
def test_a_key_file_that_others_can_use_is_refused(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(ValueError, match="chmod 600"):
        read_keys(key_file)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no key"), ("# none\n", "no key"), ("short\n", "at least 16"), ("a b" * 9, "spaces")],
)
def test_a_key_file_without_usable_keys_is_refused(key_file, text, said):
    key_file.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_keys(key_file)


def test_a_key_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        read_keys(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"cannot read|regular"):
        read_keys(tmp_path)
    if hasattr(os, "mkfifo"):
        with pytest.raises(ValueError, match="regular"):
            read_keys("/dev/null")


def test_other_machines_need_keys(key_file):
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.5.5.5"):
        check_exposure(host, Keys())
    for host in ("0.0.0.0", "192.168.1.2", "box.local", "::"):
        with pytest.raises(ValueError, match="api-key-file"):
            check_exposure(host, Keys())
        check_exposure(host, read_keys(key_file))


def test_an_origin_is_written_as_browsers_do():
    assert check_origin("https://Example.org:443/") == "https://example.org"
    assert check_origin("http://localhost:3000") == "http://localhost:3000"
    for wrong in ("*", "example.org", "https://a/b", "null", "ftp://a", "https://u@a", "http://a:99999", ""):
        with pytest.raises(ValueError, match="origin"):
            check_origin(wrong)


def test_a_port_that_is_taken_is_named():
    with listen_at("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(ValueError, match="another --port"):
            listen_at("127.0.0.1", first.getsockname()[1])
    with pytest.raises(ValueError, match="cannot listen"):
        listen_at("no.such.host.invalid", 0)
