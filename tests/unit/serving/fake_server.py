"""Serves a FakeLLM until a signal, for test_run.

Arguments: SHUTDOWN_TIMEOUT LOAD_SECONDS FAULT. FAULT is none, hangs (a step that does not end),
blocks (the event loop), or dies; it begins at SIGUSR1.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time

from fjx.serving.config import ServerConfig
from fjx.serving.run import serve_engine
from tests.unit.serving.fake_llm import FakeLLM

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
llm = FakeLLM("x" * 50, token_seconds=0.02)
llm.load_seconds = float(sys.argv[2])
llm.plans.seconds = 60.0
fault = sys.argv[3]
watchdog_timeout = 2.0
config = ServerConfig(
    port=0, shutdown_timeout=float(sys.argv[1]), watchdog_timeout=watchdog_timeout
)


async def break_at(signal_number: int) -> None:
    """Wait for a signal, then be at fault."""
    happened = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal_number, happened.set)
    await happened.wait()
    if fault == "blocks":
        time.sleep(60)
    if fault == "dies":
        llm.fail_after = 0
        llm.error = "the engine died: the step failed"
    while True:
        llm.hangs = fault == "hangs"
        llm.stalled_seconds += 0.05
        await asyncio.sleep(0.05)


async def main() -> int:
    breaking = asyncio.create_task(break_at(signal.SIGUSR1))
    code = await serve_engine(llm, config, socket.create_server(("127.0.0.1", 0)))
    breaking.cancel()
    return code


sys.exit(asyncio.run(main()))
