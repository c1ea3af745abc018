"""Runs the server until a signal: listen, load, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

try:
    from uvloop import run as run_loop
except ImportError:  # it does not exist for Windows
    from asyncio import run as run_loop  # type: ignore[assignment]

import fjx
from fjx import EngineConfig, UserError
from fjx.serving.app import create_app
from fjx.serving.config import ServerConfig
from fjx.serving.state import AsyncEngine, ServerState

logger = logging.getLogger("fjx.server")

_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep idle connections, so that none is closed under a new request."""
_LAST_BYTES_SECONDS = 5
"""How long the last answers may take to reach their clients once the engine has stopped."""


def serve(engine_config: EngineConfig, server_config: ServerConfig) -> None:
    """Serve a model; returns after a first SIGTERM or SIGINT, when the running requests have ended.

    The port is open at once; until the model is loaded, requests get a 503. A second signal, or one
    before the model is loaded, ends the process on the spot.

    Raises:
        UserError: the address cannot be listened on, or the model cannot be loaded.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("fjx").setLevel(logging.INFO)
    listener = _listen(server_config)
    # Importing AsyncLLM takes seconds (JAX): a wrong address is told before.
    run_loop(serve_engine(fjx.AsyncLLM(engine_config), server_config, listener))


async def serve_engine(
    llm: AsyncEngine, server_config: ServerConfig, listener: socket.socket
) -> None:
    """Start an engine and serve it on a listening socket, as ``serve`` does."""
    app = create_app(llm, server_config)
    state: ServerState = app.state.server
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
    )
    server = _Server(config, llm, on_signal=lambda: loop.call_soon_threadsafe(stopping.set))
    listening = asyncio.create_task(server.serve(sockets=[listener]))
    address = _address(listener)
    logger.info("listening on %s; loading %s", address, state.model_name)
    try:
        await llm.start()
        logger.info("ready: serving %s on %s", state.model_name, address)
        await stopping.wait()
        await _drain(state)
    finally:
        server.should_exit = True
        await listening


class _Server(uvicorn.Server):
    """uvicorn's server with our answer to signals; its own would close the port before draining."""

    def __init__(
        self, config: uvicorn.Config, llm: AsyncEngine, on_signal: Callable[[], object]
    ) -> None:
        super().__init__(config)
        self._llm = llm
        self._on_signal = on_signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in order at a first signal; leave the next one to the operating system."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        loading = not self._llm.is_ready and self._llm.error is None
        if loading:
            # Neither a compilation nor a read can be interrupted, and there is nothing to drain.
            signal.raise_signal(sig)
        self._on_signal()


async def _drain(state: ServerState) -> None:
    timeout = state.config.shutdown_timeout
    state.stopping.set()
    logger.info("finishing running requests, for up to %g s; signal again to stop at once", timeout)
    try:
        async with asyncio.timeout(timeout):
            await state.in_flight.wait_for_none()
    except TimeoutError:
        logger.warning("shutdown timeout: aborting the requests that still run")
    await state.llm.shutdown(drain=0.0)
    logger.info("stopped")


def _listen(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=1024)
    except OSError as error:
        raise UserError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}; "
            "choose another with --host or --port"
        ) from error


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
