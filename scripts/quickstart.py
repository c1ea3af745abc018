"""Serves the default model on this machine, asks a first question, and goes on until Ctrl-C.

Called by quickstart.sh, which sets up the environment first.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import httpx

HOST = "127.0.0.1"
FIRST_PORT = 8000
PORTS_TO_TRY = 100
QUESTION = "What is the capital of France, and what is it known for?"
POLL_SECONDS = 0.2
STOP_SECONDS = 40.0
"""Longer than the server takes to finish what is running."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="quickstart.sh", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, help="default: 8000, or the next free one")
    parser.add_argument("--once", action="store_true", help="stop after the first answer")
    arguments = parser.parse_args()

    port = arguments.port or first_free_port()
    if not is_free(port):
        say(f"port {port} of {HOST} is in use; give another with --port")
        return 2
    # A script's background job starts with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end_by_signal)
    with start_server(port) as server:
        try:
            return ask_and_serve(server, f"http://{HOST}:{port}", arguments.once)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        finally:
            stop(server)


def ask_and_serve(server: subprocess.Popen[bytes], url: str, once: bool) -> int:
    with httpx.Client(base_url=url, timeout=60.0, trust_env=False) as client:
        if not wait_until_ready(server, client):
            return exit_code(server)
        model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        print(f"\n> {QUESTION}\n", flush=True)
        for piece in stream_answer(client, model, QUESTION):
            print(piece, end="", flush=True)
        print("\n", flush=True)
    if once:
        return 0
    print(how_to_ask(url, model), flush=True)
    server.wait()
    return exit_code(server)


def server_command(port: int) -> list[str]:
    fjx = Path(sys.executable).with_name("fjx")
    # Without a line for each request, which would come in the middle of the answer.
    return [str(fjx), "serve", "--host", HOST, "--port", str(port), "--no-log-requests"]


def start_server(port: int) -> subprocess.Popen[bytes]:
    command = server_command(port)
    say("starting: fjx " + " ".join(command[1:]))
    # In a session of its own, so that Ctrl-C reaches only this process, which then ends the server.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def wait_until_ready(server: subprocess.Popen[bytes], client: httpx.Client) -> bool:
    """Whether the server, whose own bars show how far it is, became ready before it ended."""
    start = time.monotonic()
    while server.poll() is None:
        if answers_ready(client):
            say(f"ready after {time.monotonic() - start:.1f} s")
            return True
        time.sleep(POLL_SECONDS)
    say("the server ended before it was ready; its messages are above")
    return False


def answers_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def stream_answer(client: httpx.Client, model: str, question: str) -> Iterator[str]:
    """The pieces of the answer's text as they come."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 128,
        "temperature": 0,
        "stream": True,
    }
    with client.stream("POST", "/v1/chat/completions", json=request) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            data = line.removeprefix("data:").strip()
            if data and data != "[DONE]":
                for choice in json.loads(data)["choices"]:
                    yield choice["delta"].get("content") or ""


def how_to_ask(url: str, model: str) -> str:
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "Tell me a joke."}]}
    )
    return (
        f"Serving on {url} until Ctrl-C. Ask more, from another terminal:\n\n"
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'\n"
    )


def stop(server: subprocess.Popen[bytes]) -> None:
    """Let the server finish what it is doing, and kill it where that takes too long."""
    if server.poll() is not None:
        return
    say("stopping the server")
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        server.kill()


def exit_code(server: subprocess.Popen[bytes]) -> int:
    """The ended server's exit code as a shell gives it; 1 where it ended without an error."""
    code = server.returncode
    say(f"the server ended with exit code {code}")
    return 128 - code if code < 0 else code or 1


def first_free_port() -> int:
    candidates = range(FIRST_PORT, FIRST_PORT + PORTS_TO_TRY)
    return next((port for port in candidates if is_free(port)), FIRST_PORT)


def is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError):
            return False
    return True


def end_by_signal(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def say(message: str) -> None:
    print(f"quickstart: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
