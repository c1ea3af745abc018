"""llama.cpp's server out of the xllamacpp wheel: python llama_server.py GGUF THREADS PORT."""

from __future__ import annotations

import signal
import sys

import xllamacpp

SLOTS = 16
CONTEXT = 2048


def main() -> None:
    gguf, threads, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT
    server = xllamacpp.Server(params)
    print("listening on", server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
