"""The compile service: programs are compiled ahead of time from shapes, and looked up on the hot
path."""

from __future__ import annotations

import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax

from fjx.pipeline.background import background_work, give_back_memory, keep_heap
from fjx.pipeline.flat_call import flat_call
from fjx.progress_bar import progress_bar

logger = logging.getLogger(__name__)

Place = Literal["warmup", "background", "on_demand", "hot_path"]

_STACK_BYTES = 64 << 20  # XLA's compiler recurses deeply
_MAX_PROGRAMS = 4000
"""Kept where plans change, and those of one plan more. Each takes about seven memory mappings, and
Linux lets a process have 65,530."""
_WANTED = 4
"""Times that a combination is asked for before it is compiled."""
_MAX_ON_DEMAND = 256
"""Combinations that are compiled."""
_TRIM_EVERY = 16
"""Programs compiled until memory that compiling has freed is given back."""


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
    result: Any = None
    """Sharding of the result, for a program without arguments, which would tell it."""


class CompileJob:
    """Programs that are being compiled in the background.

    The specs are made as they are needed, by the thread that compiles: deriving shapes takes time.
    """

    def __init__(self, specs: Iterable[ProgramSpec]) -> None:
        self._left = iter(specs)
        self.total = len(specs) if isinstance(specs, Sized) else None
        """Programs of the job; None: not known before."""
        self.done = 0
        self._exhausted = self.total == 0
        self.error: Exception | None = None
        """Why the job has ended early."""
        self._cancelled = False

    @property
    def finished(self) -> bool:
        """Whether all programs are there."""
        return self._exhausted or self.done == self.total

    @property
    def progress(self) -> float:
        """Share of the programs that are there, as far as it is known."""
        return float(self.finished) if not self.total else self.done / self.total

    def cancel(self) -> None:
        """Begin no further program; from any thread."""
        self._cancelled = True

    def take(self) -> ProgramSpec | None:
        """The next program to compile; None: there is none, or one has failed."""
        if self._cancelled or self.error is not None:
            return None
        spec = next(self._left, None)
        self._exhausted = spec is None
        return spec


class Compiler:
    """Compiles program specs, and counts where it did.

    Tracing holds the interpreter's lock and is done in one place; compiling releases it and runs in
    threads. While the engine serves, one thread of low priority does both.
    """

    def __init__(
        self, cache_dir: Path | None, threads: int = 2, *, on_demand: bool = False
    ) -> None:
        """
        Args:
            cache_dir: keeps what was compiled, for later processes; None: nothing does.
            threads: how many compile at once in `compile_all`.
            on_demand: no warm-up is meant to come: what is missing on the hot path is compiled
                there without a warning.
        """
        self.on_demand = on_demand
        self.counts: Counter[str] = Counter()
        self._specs: dict[Hashable, ProgramSpec] = {}
        self._programs: dict[Hashable, Any] = {}
        self._recent: dict[Hashable, None] = {}
        """What was wanted or compiled in the background, what was so longest ago first."""
        self.max_programs = _MAX_PROGRAMS
        self._wanted: Counter[Hashable] = Counter()
        self._begun_on_demand = 0
        self._lock = threading.Lock()
        self._threads = threads
        self._jobs: list[CompileJob] = []
        self._urgent: list[CompileJob] = []
        self._held = False
        self._worker: threading.Thread | None = None
        if cache_dir is not None:
            _use_persistent_cache(cache_dir)

    def register(self, specs: Iterable[ProgramSpec]) -> None:
        """Make programs known, to be compiled by `compile_all` or at first use."""
        for spec in specs:
            self._specs[spec.key] = spec

    def get(self, key: Hashable) -> Any:
        """The compiled program. If it is not there, compiles it now, and counts a compile on the
        hot path, or on demand if that is how it is meant."""
        program = self._programs.get(key)
        return self._compile_now(key) if program is None else program

    @property
    def compiled_in_steps(self) -> int:
        """Programs for which a step had to wait."""
        return self.counts["on_demand"] + self.counts["hot_path"]

    def find(self, key: Hashable) -> Any | None:
        """The compiled program, or None while it is not there."""
        return self._programs.get(key)

    def spec(self, key: Hashable) -> ProgramSpec:
        """What it takes to compile a program that is known."""
        return self._specs[key]

    def find_or_begin(self, key: Hashable, spec: Callable[[], ProgramSpec]) -> Any | None:
        """The compiled program of a combination that the engine can do without; None while it is
        not there. Compiled in the background once it was asked for a few times; ``spec`` is called
        there."""
        program = self._programs.get(key)
        if program is None:
            self._wanted[key] += 1
            if self._wanted[key] == _WANTED and self._begun_on_demand < _MAX_ON_DEMAND:
                self._begun_on_demand += 1
                self.compile_background(spec() for _ in range(1))
        return program

    def compile_background(self, specs: Iterable[ProgramSpec] | None = None) -> CompileJob:
        """Begin to compile programs that the engine can do without; by default all of them."""
        if specs is None:
            specs = [spec for spec in self._specs.values() if spec.background]
        job = CompileJob(specs)
        self._begin(self._jobs, job)
        return job

    def compile_later(self, specs: Iterable[ProgramSpec]) -> CompileJob:
        """Begin to compile programs that the engine will need, before all others."""
        job = CompileJob(specs)
        self._begin(self._urgent, job)
        return job

    def hold_background(self, held: bool) -> None:
        """Let programs that the engine can do without wait, or go on with them."""
        self._held = held
        self._begin(self._jobs)

    def want(self, keys: Iterable[Hashable]) -> None:
        """Note that these programs are needed now, whether or not they are there."""
        with self._lock:
            for key in keys:
                self._recent.pop(key, None)
                self._recent[key] = None

    @property
    def num_programs(self) -> int:
        """Programs that are there."""
        return len(self._programs)

    @property
    def is_crowded(self) -> bool:
        """Whether there are so many programs that it is time to `make_room`."""
        return len(self._programs) > self.max_programs

    def make_room(self, keep: Collection[Hashable]) -> None:
        """Let go of the programs that were wanted longest ago, but for these, until it is no longer
        crowded. They are in the persistent cache, from which they are compiled when they are wanted
        again. What was neither wanted nor compiled in the background stays."""
        with self._lock:
            for key in [key for key in self._recent if key not in keep]:
                if not self.is_crowded:
                    break
                del self._recent[key]
                self._programs.pop(key, None)
                self._specs.pop(key, None)

    def wait_background(self) -> None:
        """Wait until nothing is being compiled in the background, what is held left out."""
        worker = self._worker
        if worker is not None:
            worker.join()

    def _begin(self, queue: list[CompileJob], *jobs: CompileJob) -> None:
        with self._lock:
            queue += jobs
            if self._worker is not None or not self._queue():
                return
            # Not a daemon, whichever thread begins it: the interpreter must wait for XLA's
            # compiler, which aborts if JAX is torn down around it.
            self._worker = threading.Thread(
                target=self._work, name="fjx-compile-background", daemon=False
            )
            old_stack = threading.stack_size(_STACK_BYTES)
            try:
                self._worker.start()
            finally:
                threading.stack_size(old_stack)

    def _work(self) -> None:
        with background_work():
            before = self.counts["background"]
            self._compile_jobs()
            if self.counts["background"] > before:
                keep_heap()
                give_back_memory()

    def _compile_jobs(self) -> None:
        while (next_up := self._next()) is not None:
            job, spec = next_up
            try:
                if spec.key not in self._programs:
                    self.register([spec])
                    self._keep(spec, _compile(spec, _lower(spec)), "background")
                    with self._lock:
                        self._recent.setdefault(spec.key)
                job.done += 1
            except Exception as error:
                logger.exception("could not compile %s; serving goes on without it", spec.key)
                job.error = error

    def _queue(self) -> list[CompileJob]:
        """The jobs whose turn it is."""
        return self._urgent or ([] if self._held else self._jobs)

    def _next(self) -> tuple[CompileJob, ProgramSpec] | None:
        """What to compile next; None: nothing is left, or the interpreter ends, and so must the
        thread."""
        while True:
            with self._lock:
                queue = self._queue()
                if not queue:
                    self._worker = None
                    return None
                job = queue[0]
            if not threading.main_thread().is_alive():
                # Whoever waits for a job must learn that it will never be finished.
                job.error = RuntimeError("the interpreter ends")
            try:
                spec = job.take()
            except Exception as error:
                logger.exception("could not describe a program; serving goes on without it")
                job.error, spec = error, None
            if spec is not None:
                return job, spec
            with self._lock:
                queue.remove(job)

    def compile_all(self, place: Place = "warmup", progress: bool = True) -> None:
        """Compile every program that the engine needs and that is not there yet, with a progress
        bar on stderr."""
        missing = [
            spec
            for key, spec in self._specs.items()
            if key not in self._programs and not spec.background
        ]
        bar = progress_bar(
            total=len(missing), desc="Compiling", unit="program", disable=not progress
        )
        old_stack = threading.stack_size(_STACK_BYTES)
        try:
            with ThreadPoolExecutor(self._threads, thread_name_prefix="fjx-compile") as pool, bar:
                futures: list[Future[None]] = []
                # Lowering is faster than compiling: what waits takes memory.
                room = threading.Semaphore(self._threads + 1)
                for number, spec in enumerate(missing):
                    if number % _TRIM_EVERY == 0:
                        give_back_memory()
                    room.acquire()
                    lowered = _lower(spec)
                    futures.append(pool.submit(self._finish, spec, lowered, place, bar))
                    futures[-1].add_done_callback(lambda _: room.release())
                for future in futures:
                    future.result()
        finally:
            threading.stack_size(old_stack)

    def _finish(self, spec: ProgramSpec, lowered: Any, place: Place, bar: Any) -> None:
        self._keep(spec, _compile(spec, lowered), place)
        with self._lock:
            bar.update()

    def _compile_now(self, key: Hashable) -> Any:
        if not self.on_demand:
            logger.warning("compiling %s on the request path; warm-up should have done it", key)
        spec = self._specs[key]
        program = _compile(spec, _lower(spec))
        self._keep(spec, program, "on_demand" if self.on_demand else "hot_path")
        return program

    def _keep(self, spec: ProgramSpec, program: Any, place: Place) -> None:
        with self._lock:
            self._programs[spec.key] = program
            self.counts[place] += 1


def compile_alone(spec: ProgramSpec) -> Any:
    """A program that belongs to no engine's table."""
    return _compile(spec, _lower(spec))


def _lower(spec: ProgramSpec) -> Any:
    more = {} if spec.result is None else {"out_shardings": spec.result}

    # JAX keeps what it traced as long as the function that it traced is there: spec.function stays.
    @functools.wraps(spec.function, assigned=("__name__", "__qualname__"), updated=())
    def once(*arguments: Any) -> Any:
        return spec.function(*arguments)

    del once.__wrapped__
    return jax.jit(once, donate_argnums=spec.donate, **more).lower(*spec.arguments)


def _compile(spec: ProgramSpec, lowered: Any) -> Any:
    compiled = lowered.compile(dict(spec.options) or None)
    return flat_call(compiled) if spec.flat else compiled


def _use_persistent_cache(cache_dir: Path) -> None:
    cache_dir.mkdir(parents=True, exist_ok=True)
    update: Callable[[str, Any], None] = jax.config.update
    update("jax_compilation_cache_dir", str(cache_dir))
    update("jax_persistent_cache_min_compile_time_secs", 0)
    update("jax_persistent_cache_min_entry_size_bytes", -1)
    # What XLA found fastest on this GPU. Programs that share an operation, or are compiled again,
    # then get the same algorithm for it, and the same bits, without measuring.
    update("jax_persistent_cache_enable_xla_caches", "xla_gpu_per_fusion_autotune_cache_dir")
