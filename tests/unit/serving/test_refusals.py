from __future__ import annotations

import pytest

from fjx import QueueFullError
from fjx.serving.config import ServerConfig
from fjx.serving.refusals import LineLimit, RefusalLog


@pytest.fixture
def lines(caplog):
    caplog.set_level("INFO", "fjx.server")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("path", "fields", "status", "reason"),
    [
        ("/v1/completions", {"prompt": "Hi", "temperature": -1}, 400, "temperature must be"),
        ("/v1/completions", {"prompt": "Hi", "model": "gpt-9"}, 404, "gpt-9"),
        ("/qqq", {}, 404, "there is no '/qqq' here; there are /"),
        ("/v1/completion", {}, 404, "here; did you mean /v1/completions? There are /"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages must have at least 1 item, got"),
        ("/v1/completions", {"prompt": "Hi", "n": "x"}, 400, "n must be a valid integer"),
        ("/v1/completions", {"prompt": "x" * 500}, 400, "501"),
    ],
)
def test_refused_request_is_logged_with_status_reason_and_client(
    post, lines, path, fields, status, reason
):
    post(path, **fields)
    (line,) = lines()
    assert line.startswith("127.0.0.1:")
    assert f"POST {path} refused with {status}: " in line
    assert reason in line


def test_full_queue_is_logged(post, llm, lines):
    llm.refuse = QueueFullError("30 requests are waiting", retry_after=13)
    post("/v1/completions", prompt="Hi")
    assert "refused with 429: 30 requests are waiting" in lines()[-1]


def test_key_is_asked_for_in_the_log_too_and_never_shown(call, lines):
    headers = {"Authorization": "Bearer wrong-secret"}
    call("GET", "/v1/models", ServerConfig(api_key="secret"), headers=headers)
    assert "GET /v1/models refused with 401" in lines()[-1]
    assert "secret" not in lines()[-1]


def test_served_requests_are_no_refusals(call, lines):
    call("GET", "/health")
    assert lines() == []


@pytest.mark.parametrize("path", ["/health", "/ping", "/ready"])
def test_probe_of_a_server_that_does_not_serve_is_no_refusal(call, llm, lines, path):
    llm.error = "out of memory"
    assert call("GET", path).status_code == 503
    assert lines() == []


def test_nothing_is_logged_where_that_is_off(call, lines):
    call("GET", "/v1/nothing", ServerConfig(log_requests=False))
    assert lines() == []


def test_client_cannot_write_lines_of_its_own(post, lines):
    post(
        "/v1/completions",
        prompt="Hi",
        model="x\n2026-01-01 INFO all is well\u2028\x1b[2J" + "y" * 5000,
    )
    (line,) = lines()
    assert line.isprintable()
    assert len(line) < 500


def test_flood_is_counted_instead_of_logged(lines):
    limit = LineLimit(lines=3, seconds=10)
    assert [limit.allows(now) for now in (0, 1, 2, 3, 4)] == [
        (True, 0), (True, 0), (True, 0), (False, 0), (False, 0),
    ]  # fmt: skip
    assert limit.allows(11) == (True, 2)
    assert limit.allows(12) == (True, 0)
    log = RefusalLog()
    for number in range(1000):
        log.log(("127.0.0.1", number), "refused")
    assert len(lines()) == 20
