"""Starting and ending a peer's process, on the processors it may use."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx
from lineup import HOST, Peer

START_SECONDS = 600.0
STOP_SECONDS = 30.0
DRIVER_SECONDS = 1800.0
POLL_SECONDS = 0.1
SHOWN_LOG_LINES = 15


class PeerFailedError(Exception):
    """A peer did not start, did not answer, or ended with an error."""


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    start_seconds: float
    """From starting the process to being ready."""


@contextlib.contextmanager
def serving(peer: Peer, cpus: Sequence[int]) -> Iterator[Running]:
    """Start a peer's server, wait until it is ready, and end it afterwards.

    Raises:
        PeerFailedError: it ended, or was not ready in time; the message holds its last lines.
    """
    port = free_port()
    with tempfile.TemporaryFile() as log:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*peer.command, str(port)],
            env=_environment(peer, cpus),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: _pin(cpus),
        )
        try:
            url = f"http://{HOST}:{port}"
            while not _is_ready(url, peer):
                if process.poll() is not None or time.perf_counter() - begin > START_SECONDS:
                    log.seek(0)
                    lines = log.read().decode(errors="replace").splitlines()
                    raise PeerFailedError("\n".join(lines[-SHOWN_LOG_LINES:]))
                time.sleep(POLL_SECONDS)
            yield Running(url, time.perf_counter() - begin)
        finally:
            stop(process)


def run_driver(peer: Peer, work: str, cpus: Sequence[int]) -> str:
    """Run a driver on its work and return the last line of its output.

    Raises:
        PeerFailedError: it ended with an error; the message holds its last lines.
    """
    process = subprocess.Popen(
        peer.command,
        env=_environment(peer, cpus),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: _pin(cpus),
    )
    try:
        output, errors = process.communicate(work, timeout=DRIVER_SECONDS)
    finally:
        stop(process)
    if process.returncode != 0:
        raise PeerFailedError("\n".join(errors.splitlines()[-SHOWN_LOG_LINES:]))
    return output.splitlines()[-1]


def _environment(peer: Peer, cpus: Sequence[int]) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(len(cpus)), **peer.environment}


def _pin(cpus: Sequence[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def _is_ready(url: str, peer: Peer) -> bool:
    try:
        return httpx.get(f"{url}{peer.ready_path}", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def stop(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """End the process and the workers it started, which share its process group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
