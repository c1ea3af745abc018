"""Lets llama.cpp's server tests talk to ``fjx serve``: a pytest plugin around their own ``utils``.

``ServerProcess`` starts fjx instead of llama-server. Its batch size, number of slots and sampling
defaults are left out: they choose how fast, or which of its model's texts, llama.cpp answers.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from server import SharedServer

pytest_plugins = ["applicable"]

BASE_OPTIONS = ("--kv-cache-memory", "0.4", "--drafter", "off", "--max-num-seqs", "8")
MODEL = "smollm2-135m"
PATHS = ("/chat/completions", "/completions", "/models")
"""llama-server answers at these with and without /v1 before them, fjx with it."""
NAMES = ("gpt-3.5-turbo-instruct", "gpt-3.5-turbo", "davinci-002")
"""Models that tests ask for: llama-server answers whatever it is called."""

# Their utils imports it; what it downloads is for other models.
sys.modules["wget"] = ModuleType("wget")


def pytest_configure(config: pytest.Config) -> None:
    """Change their ``utils`` in place, before any test runs."""
    import utils

    shared = SharedServer(config.getoption("fjx_python"))

    def start(server: Any, timeout_seconds: float = 0) -> None:
        server.server_port = shared.start(_options(server)).port
        utils.server_instances.add(server)

    def stop(server: Any) -> None:
        utils.server_instances.discard(server)

    def make_url(server: Any, path: str, host: str | None = None) -> str:
        prefix = "/v1" if path in PATHS else ""
        return f"http://{host or server.server_host}:{server.server_port}{prefix}{path}"

    ask = utils.ServerProcess.make_request

    def make_request(server: Any, method: str, path: str, *rest: Any, **options: Any) -> Any:
        answer = ask(server, method, path, *rest, **options)
        if path == "/models" and answer.status_code == 200:
            answer.body["data"] = without_names(answer.body["data"])
        return answer

    utils.ServerProcess.make_request = make_request
    utils.ServerProcess.start = start
    utils.ServerProcess.stop = stop
    utils.ServerProcess.make_url = make_url
    utils.ServerPreset.load_all = staticmethod(lambda: None)


def without_names(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A list of models without the names that are served for these tests alone."""
    return [model for model in models if model["id"] not in NAMES]


def _options(server: Any) -> list[str]:
    options = [*BASE_OPTIONS, "--model", MODEL]
    slots = 1 if server.kv_unified else server.n_slots or 1
    if server.n_ctx:
        options += ["--max-model-len", str(server.n_ctx // slots)]
    if server.model_alias:
        options += ["--served-model-name", server.model_alias, *NAMES]
    if server.api_key:
        options += ["--api-key", server.api_key]
    return options
