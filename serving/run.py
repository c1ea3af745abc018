"""Runs the server until a signal: listen, load, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from tqdm.contrib.logging import logging_redirect_tqdm

try:
    from uvloop import run as run_loop
except ImportError:  # it does not exist for Windows
    from asyncio import run as run_loop  # type: ignore[assignment]

import fjx
from fjx import EngineConfig, UserError
from fjx.serving.app import create_app
from fjx.serving.config import ServerConfig
from fjx.serving.connections import Connections, GuardedConnection, allowed_connections
from fjx.serving.state import AsyncEngine, ServerState
from fjx.serving.watchdog import Deadline, Watchdog, leave

logger = logging.getLogger("fjx.server")

_LAST_BYTES_SECONDS = 5
"""How long the last answers may take to reach their clients once the engine has stopped; later the
process ends without them."""
_LAST_STEP_SECONDS = 2
"""How long the step under way may take when the engine stops."""
_SWITCH_SECONDS = 0.001
"""After which a thread that runs Python makes room for one that waits, such as the event loop,
which waits several times for each answer; Python's default is 5 ms."""


def serve(engine_config: EngineConfig, server_config: ServerConfig) -> None:
    """Serve a model; returns after a first SIGTERM or SIGINT, when the running requests have ended.

    The port is open at once; until the model is loaded, requests get a 503. A second signal, or one
    before the model is loaded, ends the process on the spot. So does what hangs, with exit code 70
    (see `ServerConfig.watchdog_timeout`), and the engine's death, with 1.

    Raises:
        UserError: the address cannot be listened on, or the model cannot be loaded.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("fjx").setLevel(logging.INFO)
    sys.setswitchinterval(_SWITCH_SECONDS)
    listener = _listen(server_config)
    # On a terminal, lines stand above the bars of what is loaded and compiled meanwhile.
    with logging_redirect_tqdm() if sys.stderr.isatty() else contextlib.nullcontext():
        # Importing AsyncLLM takes seconds (JAX): a wrong address is told before.
        code = run_loop(serve_engine(fjx.AsyncLLM(engine_config), server_config, listener))
    if code:
        leave(code)  # whatever hangs would hold up an orderly end, too


async def serve_engine(
    llm: AsyncEngine, server_config: ServerConfig, listener: socket.socket
) -> int:
    """Start an engine and serve it on a listening socket, as ``serve`` does.

    Returns:
        The exit code: 0 after a signal, 1 if the engine died or did not stop.
    """
    app = create_app(llm, server_config)
    state: ServerState = app.state.server
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    deadline = Deadline()

    def stop() -> None:
        deadline.set(server_config.shutdown_timeout + _LAST_BYTES_SECONDS)
        loop.call_soon_threadsafe(stopping.set)

    server = web_server(app, llm, server_config, on_signal=stop)
    listening = asyncio.create_task(server.serve(sockets=[listener]))
    limit = 2 * server_config.watchdog_timeout or math.inf
    watching = asyncio.create_task(Watchdog(lambda: llm.stalled_seconds, limit).watch())
    address = _address(listener)
    begun, names = time.monotonic(), ", ".join(state.model_names)
    logger.info("listening on %s; loading %s", address, llm.config.model)
    try:
        await llm.start()
        logger.info("ready in %.1f s: serving %s", time.monotonic() - begun, names)
        logger.info("API: %s/v1, its docs: %s/docs, metrics: %s/metrics", *[address] * 3)
        await _first_of(stopping.wait(), llm.ended())
        if stopping.is_set():
            return await _drain(state)
        logger.critical("%s; the server ends", llm.error)
        deadline.set(2 * _LAST_BYTES_SECONDS)
        await _finish_answers(state, _LAST_BYTES_SECONDS)
        return 1
    finally:
        server.should_exit = True
        await listening
        watching.cancel()


def web_server(
    app: FastAPI, llm: AsyncEngine, config: ServerConfig, on_signal: Callable[[], object]
) -> uvicorn.Server:
    """The server of an application that ``create_app`` has made; ``on_signal`` is called at a first
    SIGTERM or SIGINT."""
    state: ServerState = app.state.server
    guard = Connections(
        max_connections=allowed_connections(config.max_connections),
        header_timeout=config.header_timeout,
        send_timeout=config.send_timeout,
        refusals=state.refusals,
    )
    options = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(GuardedConnection, guard=guard)),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # the connections log what they refuse
        access_log=False,
        proxy_headers=bool(config.forwarded_allow_ips),
        forwarded_allow_ips=list(config.forwarded_allow_ips),
        timeout_keep_alive=config.keep_alive_timeout,  # type: ignore[arg-type]  # any number will do
        timeout_graceful_shutdown=_LAST_BYTES_SECONDS - _LAST_STEP_SECONDS,
    )
    return _Server(options, llm, guard, on_signal)


class _Server(uvicorn.Server):
    """uvicorn's server with our answer to signals; its own would close the port before draining.
    It also looks after the connections."""

    def __init__(
        self,
        config: uvicorn.Config,
        llm: AsyncEngine,
        guard: Connections,
        on_signal: Callable[[], object],
    ) -> None:
        super().__init__(config)
        self._llm = llm
        self._guard = guard
        self._on_signal = on_signal

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if counter % 10 == 0:
            self._guard.sweep(list(self.server_state.connections))
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in order at a first signal; leave the next one to the operating system."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        loading = not self._llm.is_ready and self._llm.error is None
        if loading:
            # Neither a compilation nor a read can be interrupted, and there is nothing to drain.
            signal.raise_signal(sig)
        self._on_signal()


async def _first_of(*ends: Coroutine[Any, Any, object]) -> None:
    """Return when one of them does."""
    tasks = [asyncio.ensure_future(end) for end in ends]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _drain(state: ServerState) -> int:
    """Let running requests finish, then stop the engine; the exit code."""
    timeout = state.config.shutdown_timeout
    state.stopping.set()
    logger.info("finishing running requests, for up to %g s; signal again to stop at once", timeout)
    if not await _finish_answers(state, timeout):
        logger.warning("shutdown timeout: aborting the requests that still run")
    if not await state.llm.shutdown(drain=0.0, patience=_LAST_STEP_SECONDS):
        logger.error("the engine's present step does not end; stopping without it")
        return 1
    logger.info("stopped")
    return 0


async def _finish_answers(state: ServerState, seconds: float) -> bool:
    """Wait until no request is in flight; whether that came in time."""
    try:
        async with asyncio.timeout(seconds):
            await state.in_flight.wait_for_none()
    except TimeoutError:
        return False
    return True


def _listen(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=1024)
    except OSError as error:
        # What asyncio and the socket module add to it repeats the address.
        reason = (error.strerror or str(error)).partition(" (while attempting")[0]
        option = "--port (0 picks a free one)" if error.errno == errno.EADDRINUSE else "--host"
        if error.errno == errno.EACCES:
            option = "--port, from 1024 on"
        raise UserError(
            f"cannot listen on {config.host}:{config.port}: {reason}; choose another {option}"
        ) from error


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
