"""The life of a server process: listen, load, serve, drain, stop."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from fjx import EngineConfig, UserError
from fjx.serving.config import ServerConfig
from fjx.serving.run import serve, serve_engine
from tests.unit.serving.fake_llm import FakeLLM


class Running:
    """A server process around a FakeLLM: answers take a second, changes of the plan a minute."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url = ""
        self.lines: list[str] = []

    def read_until(self, text: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"no {text!r} in {self.lines}")

    def exit_code(self, seconds: float) -> int:
        return self.process.wait(seconds)


@contextmanager
def running(
    shutdown_timeout: float = 10.0, load_seconds: float = 0.0, fault: str = "none"
) -> Iterator[Running]:
    command = [sys.executable, "-m", "tests.unit.serving.fake_server"]
    process = subprocess.Popen(
        [*command, str(shutdown_timeout), str(load_seconds), fault],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    server = Running(process)
    try:
        found = re.search(r"http://[\d.]+:\d+", server.read_until("listening on"))
        assert found is not None
        server.url = found[0]
        yield server
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def streaming(server: Running) -> Iterator[Iterator[str]]:
    """A stream that takes a second, after its first event."""
    body = {"prompt": "Hi", "stream": True, "max_tokens": 50}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        yield lines


def test_sigterm_finishes_running_requests_and_refuses_new_ones():
    with running() as server:
        server.read_until("ready")
        with streaming(server) as lines:
            server.process.send_signal(signal.SIGTERM)
            server.read_until("finishing")
            refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "Hi"})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
            assert httpx.get(f"{server.url}/ready").status_code == 503
            assert httpx.get(f"{server.url}/health").status_code == 200
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert server.exit_code(5) == 0


def test_change_of_the_plan_does_not_hold_up_the_end():
    with running() as server:
        server.read_until("ready")
        with ThreadPoolExecutor() as pool:
            url = f"{server.url}/v1/plan"
            waiting = pool.submit(httpx.post, url, json={"stages": 2}, timeout=30)
            while httpx.get(url).json()["state"] == "serving":
                assert not waiting.done()
            server.process.send_signal(signal.SIGTERM)
            answer = waiting.result(5)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "shutting_down"
        assert server.exit_code(5) == 0


def test_requests_that_outlast_the_shutdown_timeout_end_with_an_error():
    with running(shutdown_timeout=0.2) as server:
        server.read_until("ready")
        with streaming(server) as lines:
            server.process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert '"error"' in rest[-2]
        assert "shutting down" in rest[-2]
        assert server.exit_code(5) == 0


def test_second_signal_stops_at_once():
    with running() as server:
        server.read_until("ready")
        with streaming(server):
            server.process.send_signal(signal.SIGTERM)
            server.read_until("finishing")
            server.process.send_signal(signal.SIGTERM)
            assert server.exit_code(0.5) == -signal.SIGTERM


def test_loading_server_listens_and_can_be_stopped():
    with running(load_seconds=60) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert "fjx:num_requests_running" in httpx.get(f"{server.url}/metrics").text
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code(2) == -signal.SIGTERM


def test_a_step_that_hangs_turns_health_and_ends_the_process():
    with running(fault="hangs") as server:
        server.read_until("ready")
        assert httpx.get(f"{server.url}/health").status_code == 200
        server.process.send_signal(signal.SIGUSR1)
        while httpx.get(f"{server.url}/health").status_code == 200:
            pass
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "Hi"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_hangs"
        line = server.read_until("exit code 70")
        assert "a step of the engine has not ended for 4 s" in line
        assert server.exit_code(10) == 70


def test_an_event_loop_that_hangs_ends_the_process():
    with running(fault="blocks") as server:
        server.read_until("ready")
        server.process.send_signal(signal.SIGUSR1)
        assert "the event loop has not ended for 4 s" in server.read_until("exit code 70")
        assert server.exit_code(10) == 70


def test_an_engine_that_died_ends_the_process():
    with running(fault="dies") as server:
        server.read_until("ready")
        with streaming(server) as lines:
            server.process.send_signal(signal.SIGUSR1)
            rest = [line for line in lines if line]
        assert "the engine died" in rest[-2], "running requests are told"
        server.read_until("the server ends")
        assert server.exit_code(10) == 1


def test_sigterm_ends_a_server_whose_engine_hangs():
    with running(shutdown_timeout=0.5, fault="hangs") as server:
        server.read_until("ready")
        server.process.send_signal(signal.SIGUSR1)
        with streaming(server):
            server.process.send_signal(signal.SIGTERM)
            assert server.exit_code(10) in (1, 70)


def test_sigterm_ends_a_server_whose_event_loop_hangs():
    with running(shutdown_timeout=0.5, fault="blocks") as server:
        server.read_until("ready")
        server.process.send_signal(signal.SIGUSR1)
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code(15) in (1, 70)


def test_idle_server_stops_soon():
    with running() as server:
        server.read_until("ready")
        with httpx.Client() as keeps_its_connection:
            keeps_its_connection.get(f"{server.url}/health")
            server.process.send_signal(signal.SIGTERM)
            assert server.exit_code(4) == 0


def test_model_that_cannot_be_loaded_ends_the_server():
    llm = FakeLLM()
    llm.load_error = UserError("no such model")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with pytest.raises(UserError, match="no such model"):
        asyncio.run(serve_engine(llm, ServerConfig(), listener))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")


def test_port_in_use_is_a_user_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        expected = f"127.0.0.1:{port}: Address already in use; choose another --port"
        with pytest.raises(UserError, match=expected):
            serve(EngineConfig(), ServerConfig(port=port))


def test_host_that_does_not_exist_is_a_user_error():
    with pytest.raises(UserError, match=r"choose another --host$"):
        serve(EngineConfig(), ServerConfig(host="nohost.invalid", port=0))


def test_connections_that_hang_do_not_hold_up_the_end():
    """Half a request line, half a body, and a stream that nobody reads."""
    with running(shutdown_timeout=1.0) as server, ExitStack() as stack:
        server.read_until("ready")
        host, port = server.url.removeprefix("http://").split(":")
        post = b"POST /v1/completions HTTP/1.1\r\nHost: fjx\r\nContent-Length: 1000\r\n\r\n{"
        for first in (b"", b"GET /hea", post):
            for _ in range(20):
                hanging = stack.enter_context(socket.create_connection((host, int(port))))
                hanging.sendall(first)
        stack.enter_context(streaming(server))
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code(30) == 0
        assert time.monotonic() - begin < 15
