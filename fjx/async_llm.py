"""The engine behind asyncio: one thread owns it, coroutines stream from it."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from typing import Any

from fjx.config import EngineConfig
from fjx.engine.describe import engine_lines
from fjx.engine.engine import Engine
from fjx.engine.progress import Progress
from fjx.engine.prompt import token_ids
from fjx.engine.start import start_engine
from fjx.errors import EngineDeadError, RegranularizationError, UserError
from fjx.models.tokenizer import Tokenizer
from fjx.output_queue import OutputQueue
from fjx.outputs import EngineStats, HeldMemory, PlanStatus, RequestOutput, SwitchRecord
from fjx.regranularization.plan_target import PlanTarget
from fjx.request_outputs import PromptScores, new_output
from fjx.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

_CHANGE_POLL_SECONDS = 0.005
"""How often an idle engine looks after a change of plan."""
_STATS_SECONDS = 0.05
"""How old the counters of a busy engine may be: making them takes longer than all else that a short
step does for its report."""


class AsyncLLM:
    """A model serving many requests at once.

    Its thread alone touches the engine. Coroutines hand it calls through a queue and get progress
    back in their event loop, once a step. Create and use it inside one event loop.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.error: str | None = None
        self._engine: Engine | None = None
        self._calls: deque[tuple[Callable[[Engine], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._ended = False
        self._deadline: float | None = None
        self._thread: threading.Thread | None = None
        self._streams: dict[str, OutputQueue] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stats = EngineStats()
        self._stats_due = -math.inf
        self._plan_status: PlanStatus | None = None
        self._awaited: dict[int, asyncio.Future[SwitchRecord]] = {}
        self._working_since: float | None = None
        self._over = asyncio.Event()
        self._is_sound = True

    async def start(self) -> None:
        """Load and compile in the engine's thread; return when ready.

        Raises:
            UserError: the model cannot be had, or the configuration does not fit it.
        """
        self._loop = asyncio.get_running_loop()
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="fjx-engine", daemon=True
        )
        self._thread.start()
        await asyncio.wrap_future(started)

    @property
    def is_ready(self) -> bool:
        """Whether requests are served."""
        return self._engine is not None and self.error is None and not self._stopping

    @property
    def stalled_seconds(self) -> float:
        """How long the engine has been at its present step; 0 while it waits for work."""
        since = self._working_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._ready_engine().tokenizer

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output, in tokens."""
        return self._ready_engine().max_model_len

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._ready_engine().executor.programs.model.config.vocab_size

    async def generate(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        request_id: str,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Stream a request; each output holds what is new since the one before.

        Closing the iterator, or cancelling the task that reads it, aborts the request.

        Args:
            prompt: text, or token ids.
            params: how tokens are chosen.
            request_id: by which it is known.
            priority: lower is served first.
            cache_salt: keys and values are shared among requests of the same one only.

        Raises:
            RequestError: the request cannot be served.
            QueueFullError: too many requests wait, or a more urgent one has taken this one's place
                before it began.
            EngineDeadError: the engine has stopped.
        """
        arrival = time.monotonic()
        engine = self._ready_engine()
        text = prompt if isinstance(prompt, str) else None
        if text is None:
            ids = token_ids(engine.tokenizer, prompt)
        else:
            ids = await asyncio.to_thread(engine.tokenizer.encode, text)
        queue = OutputQueue()

        def add(engine: Engine) -> None:
            try:
                engine.add(
                    request_id,
                    ids,
                    params,
                    priority=priority,
                    arrival=arrival,
                    cache_salt=cache_salt or "",
                )
                self._streams[request_id] = queue
            finally:
                self._tell_displaced(engine)  # they are gone even if this one was not let in

        added = self._call(add)
        unfinished = 1
        try:
            await asyncio.wrap_future(added)
            unfinished = params.n
            scores = PromptScores(params)
            while unfinished:
                for item in await queue.take():
                    for progress in scores.with_scores(item):
                        unfinished -= progress.finish_reason is not None
                        output = new_output(progress, text, ids, finished=unfinished == 0)
                        output.prompt_logprobs = scores.of_first(progress)
                        yield output
        finally:
            if unfinished:
                self._abandon(request_id, queue, added)

    async def abort(self, request_id: str) -> None:
        """End a request now; its stream ends with finish reason "abort"."""
        await asyncio.wrap_future(
            self._call(lambda engine: self._deliver(engine.abort(request_id)))
        )

    def stats(self) -> EngineStats:
        """Counters and gauges, at most 50 ms old; while a step takes longer, those before it."""
        return self._stats

    def memory(self) -> HeldMemory:
        """What the engine holds in memory now.

        Raises:
            EngineDeadError: the engine is not running.
        """
        return self._ready_engine().memory()

    def plan_status(self) -> PlanStatus:
        """Which plan serves, and what becomes of it, as of the last step.

        Raises:
            EngineDeadError: the engine is not running.
        """
        self._ready_engine()
        assert self._plan_status is not None
        return self._plan_status

    async def regranularize(
        self, target: PlanTarget, *, wait: bool = True, reason: str = "request"
    ) -> SwitchRecord:
        """Change to another plan while requests are served; none of their tokens changes.

        Args:
            target: a number of stages, the name or path of a mesh file, or a plan (as JSON values,
                or a value of `fjx.sharding.plan.plan`).
            wait: return when the change is done; otherwise when it has begun.
            reason: who wants it, for the log.

        Raises:
            MeshError: the target does not suit the machine or the model, or both plans do not fit
                into memory.
            RegranularizationBusyError: another change is under way.
            RegranularizationError: the change was aborted; the old plan serves on.
            EngineDeadError: the engine has stopped.
        """
        self._ready_engine()
        ended: asyncio.Future[SwitchRecord] = asyncio.get_running_loop().create_future()

        def begin(engine: Engine) -> SwitchRecord:
            record = engine.regranularize(target, reason)
            if wait:
                self._awaited[record.number] = ended
            return record

        record: SwitchRecord = await asyncio.wrap_future(self._call(begin))
        if wait:
            record = await ended
            if record.state == "aborted":
                raise RegranularizationError(
                    f"the change of plan was aborted: {record.error}; the old plan serves on"
                )
        return record

    async def abort_regranularization(self) -> bool:
        """Abort the change of plan that is under way; False: there is none."""
        aborted: bool = await asyncio.wrap_future(
            self._call(lambda engine: engine.plans.abort("it was aborted on request"))
        )
        return aborted

    async def ended(self) -> None:
        """Return once the engine has stopped, or died; see ``error``."""
        await self._over.wait()

    async def shutdown(self, drain: float | None = None, patience: float | None = None) -> bool:
        """Admit nothing more, finish running requests for up to ``drain`` seconds, then stop.

        Args:
            drain: seconds.
            patience: how many seconds the step under way may still take; None: any.

        Returns:
            Whether the engine has stopped; if not, only the end of the process ends it.
        """
        with self._wake:
            self._stopping = True
            self._deadline = time.monotonic() + (drain or 0.0)
            self._wake.notify()
        if self._thread is None:
            return True
        limit = None if patience is None else (drain or 0.0) + patience
        await asyncio.to_thread(self._thread.join, limit)
        return not self._thread.is_alive()

    def _ready_engine(self) -> Engine:
        if self.error is not None:
            raise EngineDeadError(self.error)
        if self._engine is None or self._stopping:
            raise EngineDeadError("the engine is not running")
        return self._engine

    def _call(self, function: Callable[[Engine], Any]) -> Future[Any]:
        """Have the engine's thread call a function between two steps."""
        future: Future[Any] = Future()
        with self._wake:
            if self._ended or self._thread is None or not self._thread.is_alive():
                future.set_exception(EngineDeadError(self.error or "the engine is not running"))
            else:
                self._calls.append((function, future))
                self._wake.notify()
        return future

    def _abandon(self, request_id: str, queue: OutputQueue, added: Future[Any]) -> None:
        """Abort a request whose reader has gone, even if it is not added yet."""

        def drop(engine: Engine) -> None:
            if self._streams.get(request_id) is queue:
                del self._streams[request_id]
                engine.abort(request_id)

        if not added.cancel():
            self._call(drop)

    # What follows runs in the engine's thread.

    def _run(self, started: Future[None]) -> None:
        try:
            engine = start_engine(self.config)
            for line in engine_lines(engine):
                logger.info("%s", line)
            self._report(engine, requests_changed=True)
        except BaseException as error:
            self.error = str(error) if isinstance(error, UserError) else repr(error)
            self._end()
            started.set_exception(error)
            return
        self._engine, self.config = engine, engine.config
        started.set_result(None)
        try:
            while self._may_go_on(engine):
                self._working_since = time.monotonic()
                changed = self._take_calls(engine)
                if engine.has_work or engine.plans.active:
                    progress = engine.step()
                    self._deliver(progress)
                    changed |= any(each.finish_reason is not None for each in progress)
                else:
                    engine.adjust_plan()
                self._report(engine, changed)
                self._working_since = None
        except BaseException as error:
            self._working_since = None
            logger.exception("the engine died")
            self.error = f"the engine died: {error!r}"
        self._end()

    def _may_go_on(self, engine: Engine) -> bool:
        """Wait for work; False when it is time to stop."""
        with self._wake:
            if not self._calls and not engine.has_work and not self._stopping:
                if engine.plans.active:
                    self._wake.wait(_CHANGE_POLL_SECONDS)
                else:
                    self._audit(engine)
                    self._wake.wait(engine.idle())
            if not self._stopping:
                return True
            late = self._deadline is not None and time.monotonic() >= self._deadline
            return bool(self._calls or engine.has_work) and not late

    def _audit(self, engine: Engine) -> None:
        """See `Engine.check_idle`. What is held by mistake keeps nobody from being served."""
        if self._is_sound:
            try:
                engine.check_idle()
            except AssertionError:
                logger.exception("the idle engine holds what it should not; please report this")
                self._is_sound = False

    def _report(self, engine: Engine, requests_changed: bool) -> None:
        """Let others see how the engine stands; tell who waits for a change of plan.

        Other threads read what was made here last, which never changes: they need no lock, and do
        not wait for a step that hangs.
        """
        now, busy = time.monotonic(), engine.has_work or engine.plans.active
        if requests_changed or not busy or now >= self._stats_due:
            self._stats, self._stats_due = engine.stats(), now + _STATS_SECONDS
        status = self._plan_status = engine.plans.status()
        if status.last is not None and status.last.number in self._awaited:
            ended = self._awaited.pop(status.last.number)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(_settle, ended, status.last)

    def _take_calls(self, engine: Engine) -> bool:
        """Do what was asked for between two steps; whether anything was."""
        count = len(self._calls)
        for _ in range(count):
            with self._wake:
                function, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function(engine)
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):
                    raise  # somebody ends the process; those that are left are told by `_end`
            else:
                future.set_result(result)
        return count > 0

    def _tell_displaced(self, engine: Engine) -> None:
        """Let readers know that their requests have lost their places."""
        items: list[tuple[OutputQueue, Progress | Exception]] = [
            (self._streams.pop(id), error)
            for id, error in engine.displaced.items()
            if id in self._streams
        ]
        engine.displaced.clear()
        if items and self._loop is not None:
            self._loop.call_soon_threadsafe(_put_all, items)

    def _deliver(self, progress: list[Progress]) -> None:
        """Hand a step's progress to the event loop, all at once."""
        if not progress or self._loop is None:
            return
        streams = self._streams
        items: list[tuple[OutputQueue, Progress | Exception]] = [
            (streams[p.request.id], p) for p in progress if p.request.id in streams
        ]
        self._loop.call_soon_threadsafe(_put_all, items)
        for each in progress:
            if self._engine is not None and not self._engine.knows(each.request.id):
                streams.pop(each.request.id, None)

    def _end(self) -> None:
        """Leave no stream and no call waiting."""
        error = EngineDeadError(
            self.error or "the engine was shut down before the request finished"
        )
        with self._wake:
            self._stopping = self._ended = True
            calls = list(self._calls)
            self._calls.clear()
        for _, future in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        if self._loop is not None and not self._loop.is_closed():
            items: list[tuple[OutputQueue, Progress | Exception]] = [
                (queue, error) for queue in self._streams.values()
            ]
            self._loop.call_soon_threadsafe(_put_all, items)
            self._loop.call_soon_threadsafe(self._over.set)
            for ended in self._awaited.values():
                self._loop.call_soon_threadsafe(_settle, ended, error)
        self._streams.clear()
        self._awaited.clear()
        if self._engine is not None:
            self._engine.plans.close("the engine ended")


def _settle(ended: asyncio.Future[SwitchRecord], outcome: SwitchRecord | Exception) -> None:
    if ended.done():
        return  # nobody waits any more
    if isinstance(outcome, Exception):
        ended.set_exception(outcome)
    else:
        ended.set_result(outcome)


def _put_all(items: list[tuple[OutputQueue, Progress | Exception]]) -> None:
    for queue, item in items:
        queue.put(item)
