"""Workers as processes of this machine, to do them harm: for tests and benchmarks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fjx.cluster.actor import WorkerHandle


def pid_of(worker: WorkerHandle, seconds: float = 10.0) -> int:
    """A worker's process, which must answer within so many seconds."""
    pid: int = worker.call("pid").result(seconds)
    return pid


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def stopped_mostly(pid: int, stopped: float, running: float) -> Iterator[None]:
    """A process that is stopped and goes on again and again, so many seconds each."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            os.kill(pid, signal.SIGSTOP)
            ended.wait(stopped)
            os.kill(pid, signal.SIGCONT)
            ended.wait(running)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
