from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from fjx.serving.app import create_app
from fjx.serving.config import ServerConfig
from fjx.serving.run import web_server
from tests.unit.serving.fake_llm import FakeLLM

Call = Callable[..., httpx.Response]


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM()


@pytest.fixture
def call(llm: FakeLLM) -> Call:
    """Sends one request straight into the application: ``call("POST", "/tokenize", json=...)``."""
    apps: dict[ServerConfig, FastAPI] = {}

    def send(
        method: str, path: str, config: ServerConfig | None = None, **request: Any
    ) -> httpx.Response:
        config = config or ServerConfig()
        if config not in apps:
            apps[config] = create_app(llm, config)

        async def run() -> httpx.Response:
            apps[config].state.server.stopping = asyncio.Event()  # each belongs to one loop
            transport = httpx.ASGITransport(apps[config], raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://fjx") as client:
                return await client.request(method, path, **request)

        return asyncio.run(run())

    return send


@pytest.fixture
def post(call: Call) -> Call:
    """Sends a JSON body: ``post("/v1/completions", prompt="Hi")``."""
    return lambda path, **body: call("POST", path, json=body)


class Served:
    """A server on a loopback port."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def wait_until(self, happened: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)


@contextmanager
def serving(llm: FakeLLM, config: ServerConfig | None = None) -> Iterator[Served]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = config or ServerConfig()
    server = web_server(create_app(llm, config), llm, config, on_signal=lambda: None)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def served(llm: FakeLLM) -> Iterator[Served]:
    """A real server around ``llm``, for what only a socket shows."""
    with serving(llm) as server:
        yield server
