"""Who is let in, and where a server listens."""

from __future__ import annotations

import json

import pytest

from dvpd.runtime import InputError, cli
from dvpd.runtime.server.limits import Door, counted, find_token, is_loopback

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.1", False), ("localhost.evil.com", False),
     ("", False)],
)  # fmt: skip
def test_loopback_is_known(host, here):
    assert is_loopback(host) is here


def test_others_reach_a_server_only_with_a_token(tmp_path, monkeypatch):
    monkeypatch.delenv("DVPD_TOKEN", raising=False)
    assert find_token("127.0.0.1", None) is None
    with pytest.raises(InputError, match="can be reached from other machines: give a token"):
        find_token("0.0.0.0", None)
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    assert find_token("0.0.0.0", file) == TOKEN
    monkeypatch.setenv("DVPD_TOKEN", TOKEN)
    assert find_token("::", None) == find_token("localhost", None) == TOKEN
    for bad in ("", "short", "with spaces in it, long", "ä" * 20):
        file.write_text(bad, encoding="utf-8")
        with pytest.raises(InputError, match="holds no token"):
            find_token("127.0.0.1", file)
    with pytest.raises(InputError, match="cannot be read as a token"):
        find_token("127.0.0.1", tmp_path / "none")


@pytest.mark.parametrize(
    ("headers", "let_in"),
    [({}, True), ({"host": "localhost:8130"}, True), ({"host": "[::1]:8130"}, True),
     ({"host": "evil.com"}, False), ({"host": "[bad"}, False),
     ({"host": "127.0.0.1", "origin": "http://localhost:3000"}, True),
     ({"host": "127.0.0.1", "origin": "https://evil.com"}, False),
     ({"host": "127.0.0.1", "origin": "null"}, False)],
)  # fmt: skip
def test_without_a_token_other_sites_pages_stay_out(headers, let_in):
    assert (Door().refusal(headers) is None) is let_in


def test_with_a_token_nothing_else_counts():
    door = Door(TOKEN)
    assert door.refusal({"authorization": f"Bearer {TOKEN}", "origin": "https://mine.org"}) is None
    assert door.refusal({}, TOKEN) is None
    assert "a token is needed" in door.refusal({})
    assert "a token is needed" in door.refusal({"authorization": f"Basic {TOKEN}"})
    assert "not the server's" in door.refusal({"authorization": "Bearer other"})
    assert "not the server's" in door.refusal({}, "ä")


def test_a_server_with_a_token(serving):
    with serving(TOKEN) as client:
        assert client.ask("GET", "/health").status == 200
        assert client.error("GET", "/metrics")[0] == 401
        assert client.error("POST", "/enhance", b"x")[0] == 401
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert client.ask("GET", "/metrics", headers=bearer).status == 200
        assert client.error("POST", "/enhance", b"x", bearer)[0] == 400
        with client.stream() as (_, answer):
            assert "a token is needed" in answer["error"]
        with client.stream(token="wrong") as (_, answer):
            assert "not the server's" in answer["error"]
        with client.stream(token=TOKEN) as (_, answer):
            assert "latency_ms" in answer
        with client.socket(additional_headers=bearer) as socket:
            socket.send('{"rate": 16000}')
            assert "latency_ms" in json.loads(socket.recv(60))


def test_other_sites_pages_stay_out(client):
    assert client.error("POST", "/enhance", b"x", {"Origin": "https://evil.com"})[0] == 401
    with client.socket(origin="https://evil.com") as socket:
        socket.send('{"rate": 16000}')
        assert "another site" in json.loads(socket.recv(60))["error"]


def test_health_and_figures(client):
    health = json.loads(client.ask("GET", "/health").body)
    assert health["status"] == "ok"
    assert health["live_model"] == "tiny-test"
    page = client.ask("GET", "/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = page.body.decode().splitlines()
    for name in ("streams", "blocks_late_total", "steps", "files"):
        assert any(line.startswith(f"dvpd_{name} ") for line in lines), name
    assert all(line.startswith("#") or len(line.rsplit(" ", 1)) == 2 for line in lines)


def test_the_command_refuses_before_it_loads_a_model(capsys, monkeypatch, serving):
    monkeypatch.delenv("DVPD_TOKEN", raising=False)
    monkeypatch.delenv("DVPD_ENGINE", raising=False)
    assert cli.main(["serve", "--host", "0.0.0.0"]) == 2
    assert "can be reached from other machines" in capsys.readouterr().err
    assert cli.main(["serve", "--max-streams", "0"]) == 2
    assert cli.main(["serve", "--host", "192.0.2.1", "--port", "1"]) == 2


def test_a_port_that_is_taken_is_said(client, capsys, monkeypatch):
    port = client.place.split(":")[1]
    assert cli.main(["serve", "--port", port]) == 1
    said = capsys.readouterr().err
    assert f"dvpd: port {port} of 127.0.0.1 is in use by another program" in said
    assert "--port 0" in said
    monkeypatch.setenv("DVPD_TOKEN", "0123456789abcdef")
    assert cli.main(["serve", "--host", "192.0.2.1", "--port", "1"]) == 1
    assert "cannot listen on 192.0.2.1 port 1" in capsys.readouterr().err


def test_one_thing_has_no_plural():
    assert (counted(1, "stream"), counted(2, "stream")) == ("1 stream", "2 streams")
