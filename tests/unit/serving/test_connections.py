"""What connections may cost, shown with raw sockets against a real server."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest

from fjx.serving.config import ServerConfig
from fjx.serving.connections import MAX_PIPELINED, allowed_connections
from tests.unit.serving.conftest import Served, serving
from tests.unit.serving.fake_llm import FakeLLM

SHORT = ServerConfig(header_timeout=0.5, body_timeout=1.0, send_timeout=1.0, keep_alive_timeout=2.0)
HEALTH = b"GET /health HTTP/1.1\r\nHost: fjx\r\n\r\n"


@contextmanager
def connected(server: Served, first: bytes = b"") -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        connection.settimeout(30)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.connect((host, int(port)))
        connection.sendall(first)
        yield connection


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes; fails if it does not."""
    data = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece


def dripping(connection: socket.socket, piece: bytes, seconds: float = 30.0) -> bytes:
    """Send a piece now and then; what had come when the server closed."""
    deadline = time.monotonic() + seconds
    connection.settimeout(0.1)
    data = b""
    while time.monotonic() < deadline:
        try:
            connection.sendall(piece)
            if not (got := connection.recv(65536)):
                return data
            data += got
        except TimeoutError:
            continue
        except OSError:
            return data
    raise AssertionError(f"the server did not close; it sent {data!r}")


def error_in(response: bytes) -> dict[str, str]:
    return json.loads(response.partition(b"\r\n\r\n")[2])["error"]


def post(length: int) -> bytes:
    head = "POST /v1/completions HTTP/1.1\r\nHost: fjx\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode()


@pytest.mark.parametrize("first", [b"", b"\r\n", b"GET /hea", HEALTH[:-2]])
def test_connection_without_a_request_is_closed(llm, first):
    with serving(llm, SHORT) as server, connected(server, first) as connection:
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert "0.5 s" in error_in(answer)["message"]


@pytest.mark.parametrize(("first", "piece"), [(b"", b"\r\n"), (HEALTH[:-2], b"X-Slow: 1\r\n")])
def test_headers_that_drip_do_not_keep_a_connection(llm, first, piece):
    with serving(llm, SHORT) as server, connected(server, first) as connection:
        assert dripping(connection, piece).startswith(b"HTTP/1.1 408")


def test_line_breaks_after_an_answer_do_not_keep_a_connection(llm):
    with serving(llm, SHORT) as server, connected(server, HEALTH) as connection:
        answer = dripping(connection, b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


def test_idle_connection_is_kept_for_its_time_and_then_closed(llm):
    with serving(llm, SHORT) as server, connected(server, HEALTH) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        time.sleep(1.0)
        connection.sendall(HEALTH)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert rest_of(connection) == b""


def test_body_that_does_not_come_is_a_408(llm):
    with serving(llm, SHORT) as server, connected(server, post(100) + b'{"prompt"') as connection:
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert error_in(answer)["code"] == "body_timeout"
    assert llm.calls == []


def test_body_that_drips_is_a_408(llm):
    with serving(llm, SHORT) as server, connected(server, post(1000)) as connection:
        assert dripping(connection, b" ").startswith(b"HTTP/1.1 408")


def test_body_that_drips_after_the_answer_does_not_keep_a_connection(llm):
    config = ServerConfig(header_timeout=0.5, api_key="secret")
    with serving(llm, config) as server, connected(server, post(10_000)) as connection:
        assert dripping(connection, b" ").startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nX-Long: " + b"a" * 1_000_000,
        b"GET /" + b"a" * 1_000_000,
        b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 200_000,
    ],
)
def test_headers_without_end_are_refused(llm, head):
    with serving(llm) as server, connected(server) as connection:
        with suppress(OSError):  # it may be closed meanwhile
            connection.sendall(head)
        answer = rest_of(connection)
        assert answer.startswith(b"HTTP/1.1 431") or answer == b""
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_headers_that_are_too_large_are_refused_whole(llm):
    head = b"GET /health HTTP/1.1\r\nHost: fjx\r\nX-Long: " + b"a" * 70_000 + b"\r\n\r\n"
    with serving(llm) as server, connected(server, head) as connection:
        assert rest_of(connection).startswith(b"HTTP/1.1 431")


def test_what_is_no_http_gets_an_error_of_the_usual_shape(llm):
    with serving(llm) as server, connected(server, b"\x16\x03\x01 hello\r\n\r\n") as connection:
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert error_in(answer)["type"] == "invalid_request_error"


def test_too_many_requests_in_one_connection_are_refused(llm):
    body = b'{"prompt":"Hi","max_tokens":3}'
    llm.token_seconds = 0.05
    with serving(llm) as server:
        with connected(server, (post(len(body)) + body) * (MAX_PIPELINED + 10)) as connection:
            answer = rest_of(connection)
        assert b"HTTP/1.1 429" in answer
        with connected(server, (post(len(body)) + body) * MAX_PIPELINED) as connection:
            answers = b""
            while answers.count(b"HTTP/1.1 200") < MAX_PIPELINED:
                answers += connection.recv(65536)


@pytest.mark.parametrize("junk", [b"\x16\x03 junk\r\n\r\n", HEALTH[:-2] + b"A" * 300_000])
def test_what_follows_whole_requests_does_not_spoil_their_answers(llm, junk):
    body = b'{"prompt":"Hi","max_tokens":3}'
    llm.token_seconds = 0.05
    with serving(llm) as server, connected(server, (post(len(body)) + body) * 3) as connection:
        connection.sendall(junk)
        answers = rest_of(connection)
    assert answers.count(b"HTTP/1.1 200") == 3
    assert answers.startswith(b"HTTP/1.1 200")
    assert answers.rpartition(b"HTTP/1.1 ")[2][:3] in (b"400", b"431")


def test_half_open_connections_make_room_for_new_ones(llm):
    config = ServerConfig(max_connections=5)
    with serving(llm, config) as server, ExitStack() as stack:
        oldest, *_ = [stack.enter_context(connected(server, b"GET /")) for _ in range(20)]
        for _ in range(3):
            assert httpx.get(f"{server.url}/health").status_code == 200
        assert rest_of(oldest) == b""


def test_connections_with_requests_are_not_closed_for_new_ones(llm):
    llm.token_seconds = 0.3
    body = b'{"prompt":"Hi","max_tokens":6}'
    with serving(llm, ServerConfig(max_connections=2)) as server, ExitStack() as stack:
        busy = [stack.enter_context(connected(server, post(len(body)) + body)) for _ in range(2)]
        server.wait_until(lambda: len(llm.calls) == 2)
        with connected(server, HEALTH) as refused:
            answer = rest_of(refused)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 503")
        for connection in busy:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_client_that_does_not_read_its_stream_is_cut_off(caplog):
    caplog.set_level("INFO", "fjx.server")
    llm = FakeLLM("x" * 60_000)
    llm.max_model_len = 100_000
    body = b'{"prompt":"Hi","max_tokens":60000,"stream":true}'
    with serving(llm, SHORT) as server, connected(server, post(len(body)) + body):
        server.wait_until(lambda: llm.aborted)
        assert httpx.get(f"{server.url}/health").status_code == 200
    assert "does not take its answer" in caplog.text


def test_client_that_does_not_read_a_large_answer_is_cut_off(llm, caplog):
    caplog.set_level("INFO", "fjx.server")
    llm.max_model_len = 100_000
    body = json.dumps({"prompt": [257] * 20_000, "n": 128, "echo": True, "max_tokens": 1}).encode()
    with serving(llm, SHORT) as server, connected(server, post(len(body)) + body):
        server.wait_until(lambda: "does not take its answer" in caplog.text)
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_echo_that_multiplies_an_answer_beyond_bounds_is_refused(llm):
    llm.max_model_len = 100_000
    with serving(llm) as server:
        body = {"prompt": [257] * 40_000, "n": 128, "echo": True, "max_tokens": 1}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "echo"


def test_large_answer_comes_whole(llm):
    llm.max_model_len = 200_000
    body = {"prompt": "é" * 60_000, "n": 3, "echo": True, "max_tokens": 5}
    with serving(llm) as server:
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
    assert [choice["text"] for choice in answer["choices"]] == ["é" * 60_000 + "Hello"] * 3


def test_address_of_the_client_is_not_taken_from_a_header_unless_a_proxy_is_trusted(llm, caplog):
    caplog.set_level("INFO", "fjx.server")
    headers = {"X-Forwarded-For": "203.0.113.9"}
    for config, shown in (
        (ServerConfig(), False),
        (ServerConfig(forwarded_allow_ips=("127.0.0.1",)), True),
    ):
        caplog.clear()
        with serving(llm, config) as server:
            httpx.get(f"{server.url}/v1/nothing", headers=headers)
        (line,) = [r.getMessage() for r in caplog.records if "404" in r.getMessage()]
        assert line.startswith("203.0.113.9:" if shown else "127.0.0.1:")


def test_connections_are_limited_by_what_the_system_allows(monkeypatch, caplog):
    resource = pytest.importorskip("resource")
    limits = [100, 1000]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.__setitem__(0, both[0]))
    assert allowed_connections(500) == 500
    assert limits[0] > 500
    assert "ulimit" not in caplog.text
    assert allowed_connections(5000) == 1000 - 256
    assert "ulimit" in caplog.text


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("upgrade", ["Upgrade: h2c", "upgrade:h2c ", "UPGRADE: \th2c"])
def test_a_client_that_offers_http_2_is_served_without_it(llm, upgrade, at_once):
    """As Java's HttpClient does in its first request; the body may mention it, too."""
    body = json.dumps({"prompt": "\r\n\r\nUpgrade: h2c\r\n", "max_tokens": 1}).encode()
    lines = post(len(body)).removesuffix(b"\r\n")
    lines += b"Connection: Upgrade, HTTP2-Settings\r\n"
    head = f"{upgrade}\r\nHTTP2-Settings: AAEAAEAA\r\n\r\n".encode()
    with serving(llm, SHORT) as server, connected(server) as connection:
        for piece in [lines + head + body] if at_once else [lines, head, body]:
            connection.sendall(piece)
            time.sleep(0.05)
        connection.sendall(HEALTH)
        answers = b""
        while answers.count(b"HTTP/1.1 ") < 2:
            answers += connection.recv(65536)
    assert answers.count(b"HTTP/1.1 200") == 2, answers
    assert bytes(llm.calls[0].prompt[1:]) == b"\r\n\r\nUpgrade: h2c\r\n"
