"""Serves a FakeLLM until a signal, for test_run: fake_server.py SHUTDOWN_TIMEOUT LOAD_SECONDS."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys

from fjx.serving.config import ServerConfig
from fjx.serving.run import serve_engine
from tests.unit.serving.fake_llm import FakeLLM

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
llm = FakeLLM("x" * 50, token_seconds=0.02)
llm.load_seconds = float(sys.argv[2])
llm.plans.seconds = 60.0
config = ServerConfig(port=0, shutdown_timeout=float(sys.argv[1]))
asyncio.run(serve_engine(llm, config, socket.create_server(("127.0.0.1", 0))))
