"""scripts/quickstart.py with a stand-in for the server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

SERVER = """
import json, os, signal, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

port, mode, pid_file = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
pid_file.write_text(str(os.getpid()))
if mode == "dies":
    sys.exit(7)

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(json.dumps({"data": [{"id": "tiny"}]}))

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        pieces = ["Paris", ".", None]
        events = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
        lines = [f"data: {json.dumps(event)}\\n\\n" for event in events]
        self.answer("".join(lines) + "data: [DONE]\\n\\n")
        if mode == "dies later":
            threading.Timer(0.5, os._exit, [9]).start()

    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass

HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def pid_file(tmp_path: Path) -> Path:
    """Holds the process id of the server that was started."""
    return tmp_path / "pid"


@pytest.fixture
def start(tmp_path: Path, pid_file: Path) -> Iterator[Start]:
    """Start quickstart.py with a server that behaves in some way."""
    server = tmp_path / "server.py"
    server.write_text(SERVER)
    started = []

    def run(mode: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(server)]
        program = (
            f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import quickstart\n"
            f"quickstart.server_command = lambda port: {command!r} + [str(port), {mode!r}, "
            f"{str(pid_file)!r}]\n"
            "sys.exit(quickstart.main())"
        )
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.terminate()  # a kill would leave the server behind
        process.communicate(timeout=300)


def is_running(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"{text!r} was not printed")


def test_once_prints_the_answer_and_stops_the_server(start: Start, pid_file: Path) -> None:
    process = start("serves", "--once")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "Paris." in output
    assert not is_running(pid_file)


def test_goes_on_serving_and_says_how_to_ask(start: Start, pid_file: Path) -> None:
    process = start("serves")
    read_until(process, "curl http://127.0.0.1:")
    time.sleep(0.2)
    assert process.poll() is None
    assert is_running(pid_file)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_stops_the_server_too(
    start: Start, pid_file: Path, number: signal.Signals, code: int
) -> None:
    process = start("serves")
    read_until(process, "curl")
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode == code
    assert not is_running(pid_file)


@pytest.mark.parametrize(("mode", "code"), [("dies", 7), ("dies later", 9)])
def test_a_server_that_ends_gives_its_exit_code(start: Start, mode: str, code: int) -> None:
    process = start(mode)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == code
    assert f"exit code {code}" in messages


def test_a_port_in_use_is_refused(start: Start, pid_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = start("serves", "--port", str(listener.getsockname()[1]))
        _, messages = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "in use" in messages
    assert not pid_file.exists()
