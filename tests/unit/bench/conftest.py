"""A tiny OpenAI-compatible server that streams what a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Script = Callable[[dict[str, Any]], list[Any]]


class FakeServer:
    """Answers each request with the events of ``script``: a dict is sent as data, a str as it
    stands, a number is a pause in seconds, and an int first is the HTTP status."""

    def __init__(self) -> None:
        self.script: Script = completion_script()
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps({"data": [{"id": "fake-model"}]}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append((self.path, body, dict(self.headers)))
                    outer.in_flight += 1
                    outer.max_in_flight = max(outer.max_in_flight, outer.in_flight)
                try:
                    self.answer(outer.script(body))
                finally:
                    with outer.lock:
                        outer.in_flight -= 1

            def answer(self, events: list[Any]) -> None:
                status = events.pop(0) if events and type(events[0]) is int else 200
                self.send_response(status)
                self.end_headers()
                for event in events:
                    if isinstance(event, float):
                        time.sleep(event)
                        continue
                    line = f"data: {json.dumps(event)}" if isinstance(event, dict) else event
                    self.wfile.write((line + "\n\n").encode())
                    self.wfile.flush()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def token(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    """One chunk of a streamed completion."""
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The last chunk, with ``stream_options.include_usage``."""
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return {"choices": [], "usage": counts}


def completion_script(pause: float = 0.0) -> Script:
    """As many chunks as ``max_tokens`` asks for, ``pause`` seconds before each."""

    def script(body: dict[str, Any]) -> list[Any]:
        count = body["max_tokens"]
        events: list[Any] = []
        for i in range(count):
            events += [pause, token(f" t{i}", "length" if i == count - 1 else None)]
        return [*events, usage(len(body.get("prompt", "")), count), "data: [DONE]"]

    return script


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    fake = FakeServer()
    thread = threading.Thread(target=fake.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()
    thread.join()
