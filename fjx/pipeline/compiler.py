"""The compile service: programs are compiled ahead of time from shapes, and looked up on the hot
path."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
from tqdm import tqdm

from fjx.pipeline.flat_call import flat_call

logger = logging.getLogger(__name__)

Place = Literal["warmup", "background", "hot_path"]

_STACK_BYTES = 64 << 20  # XLA's compiler recurses deeply


@dataclass(frozen=True)
class ProgramSpec:
    """What it takes to compile a program: no data, only shapes."""

    key: Hashable
    """Name and bucket; what the hot path looks up."""
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    """Pytrees of jax.ShapeDtypeStruct."""
    donate: tuple[int, ...] = ()
    """Positions of arguments whose memory the program may reuse."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """XLA compile options."""
    flat: bool = False
    """Whether it is called with the flat list of its arrays, see `flat_call`."""
    background: bool = False
    """Whether the engine can do without it: it is compiled while the engine serves."""


class Compiler:
    """Compiles program specs, and counts where it did.

    Tracing holds the interpreter's lock and is done in one place; compiling releases it and runs in
    threads.
    """

    def __init__(self, cache_dir: Path | None, threads: int = 2) -> None:
        self.counts: Counter[str] = Counter()
        self._specs: dict[Hashable, ProgramSpec] = {}
        self._background: threading.Thread | None = None
        self._programs: dict[Hashable, Any] = {}
        self._lock = threading.Lock()
        self._threads = threads
        if cache_dir is not None:
            _use_persistent_cache(cache_dir)

    def register(self, specs: Iterable[ProgramSpec]) -> None:
        """Make programs known, to be compiled by `compile_all` or at first use."""
        for spec in specs:
            self._specs[spec.key] = spec

    def get(self, key: Hashable) -> Any:
        """The compiled program. If it is not there, compiles it now and counts a hot-path
        compile."""
        program = self._programs.get(key)
        return self._compile_now(key) if program is None else program

    def find(self, key: Hashable) -> Any | None:
        """The compiled program, or None while it is not there."""
        return self._programs.get(key)

    def compile_background(self) -> None:
        """Begin to compile the programs that the engine can do without; once."""
        if self._background is None:
            # Not a daemon, whichever thread begins it: the interpreter must wait for XLA's
            # compiler, which aborts if JAX is torn down around it.
            self._background = threading.Thread(
                target=self._compile_in_turn, name="fjx-compile-background", daemon=False
            )
            old_stack = threading.stack_size(_STACK_BYTES)
            try:
                self._background.start()
            finally:
                threading.stack_size(old_stack)

    def wait_background(self) -> None:
        """Wait until `compile_background` has done its work."""
        if self._background is not None:
            self._background.join()

    def _compile_in_turn(self) -> None:
        for key, spec in self._specs.items():
            if not threading.main_thread().is_alive():
                return  # the interpreter ends, and waits for this thread
            if spec.background and key not in self._programs:
                try:
                    self._keep(spec, _compile(spec, _lower(spec)), "background")
                except Exception:
                    logger.exception("could not compile %s; serving goes on without it", key)
                    return

    def compile_all(self, place: Place = "warmup", progress: bool = True) -> None:
        """Compile every program that the engine needs and that is not there yet, with a progress
        bar on stderr."""
        missing = [
            spec
            for key, spec in self._specs.items()
            if key not in self._programs and not spec.background
        ]
        bar = tqdm(total=len(missing), desc="Compiling", unit="program", disable=not progress)
        old_stack = threading.stack_size(_STACK_BYTES)
        try:
            with ThreadPoolExecutor(self._threads, thread_name_prefix="fjx-compile") as pool, bar:
                futures: list[Future[None]] = []
                for spec in missing:
                    lowered = _lower(spec)
                    futures.append(pool.submit(self._finish, spec, lowered, place, bar))
                for future in futures:
                    future.result()
        finally:
            threading.stack_size(old_stack)

    def _finish(self, spec: ProgramSpec, lowered: Any, place: Place, bar: Any) -> None:
        self._keep(spec, _compile(spec, lowered), place)
        with self._lock:
            bar.update()

    def _compile_now(self, key: Hashable) -> Any:
        logger.warning("compiling %s on the request path; warm-up should have done it", key)
        spec = self._specs[key]
        program = _compile(spec, _lower(spec))
        self._keep(spec, program, "hot_path")
        return program

    def _keep(self, spec: ProgramSpec, program: Any, place: Place) -> None:
        with self._lock:
            self._programs[spec.key] = program
            self.counts[place] += 1


def _lower(spec: ProgramSpec) -> Any:
    return jax.jit(spec.function, donate_argnums=spec.donate).lower(*spec.arguments)


def _compile(spec: ProgramSpec, lowered: Any) -> Any:
    compiled = lowered.compile(dict(spec.options) or None)
    return flat_call(compiled) if spec.flat else compiled


def _use_persistent_cache(cache_dir: Path) -> None:
    cache_dir.mkdir(parents=True, exist_ok=True)
    update: Callable[[str, Any], None] = jax.config.update
    update("jax_compilation_cache_dir", str(cache_dir))
    update("jax_persistent_cache_min_compile_time_secs", 0)
    update("jax_persistent_cache_min_entry_size_bytes", -1)
