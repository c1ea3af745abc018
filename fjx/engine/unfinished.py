"""Requests from their arrival to their end: how they come in, who gives way, how they end."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fjx.engine.counters import EngineCounters
from fjx.engine.detokenizer import Detokenizer
from fjx.engine.input_processor import InputProcessor
from fjx.engine.progress import Progress
from fjx.engine.replicas import Replicas
from fjx.errors import QueueFullError
from fjx.models.tokenizer import Tokenizer
from fjx.outputs import FinishReason
from fjx.sampling_params import SamplingParams
from fjx.scheduling.bad_words import bad_word_tokens
from fjx.scheduling.queue_room import ServiceTimes, who_gives_way
from fjx.scheduling.request import Request

logger = logging.getLogger(__name__)


class UnfinishedRequests:
    """What the engine knows of them all; replicas have their pages."""

    def __init__(
        self,
        intake: InputProcessor,
        tokenizer: Tokenizer,
        replicas: Replicas,
        counters: EngineCounters,
        ended: Callable[[Request], None],
        clock: Callable[[], float],
        *,
        max_waiting: int,
        max_num_seqs: int,
    ) -> None:
        """
        Args:
            intake: makes requests.
            tokenizer: the model's.
            replicas: serve them.
            counters: count how they end.
            ended: called when a request has ended.
            clock: the engine's, seconds.
            max_waiting: most requests in the queue.
            max_num_seqs: how many a replica serves at once.
        """
        self.transcripts = Detokenizer(tokenizer)
        self.displaced: dict[str, QueueFullError] = {}
        """Requests that gave way to more urgent ones, by id, until they are told."""
        self._intake = intake
        self._tokenizer = tokenizer
        self._replicas = replicas
        self._counters = counters
        self._ended = ended
        self._clock = clock
        self._max_waiting = max_waiting
        self._max_num_seqs = max_num_seqs
        self._service_times = ServiceTimes()

    @property
    def room(self) -> int:
        """Completions that may still be added now."""
        return self._max_waiting - self._replicas.num_waiting

    @property
    def ids(self) -> list[str]:
        """Ids of the requests that have unfinished completions."""
        return self._intake.ids

    def knows(self, request_id: str) -> bool:
        """Whether the request has unfinished completions."""
        return bool(self._intake.unfinished(request_id))

    def check(self, prompt: list[int], params: SamplingParams) -> None:
        """See `InputProcessor.check`."""
        self._intake.check(prompt, params)

    def add(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        priority: int,
        arrival: float | None,
        cache_salt: str,
    ) -> list[Request]:
        """See `Engine.add`. What raises leaves nothing of the request behind."""
        self.check(prompt, params)
        bad_words = bad_word_tokens(self._tokenizer, params.bad_words)
        arrived = self._clock() if arrival is None else arrival

        def made() -> list[Request]:
            return self._intake.requests(
                request_id, prompt, params, priority, arrived, self.room, cache_salt, bad_words
            )

        try:
            requests = made()
        except QueueFullError as error:
            self._make_room(params.n, priority, error)
            requests = made()
        try:
            for request in requests:
                self.transcripts.begin(request)
        except BaseException:
            for request in requests:
                request.finish_reason = "error"
                self.transcripts.forget(request)
                self._intake.ended(request)
            raise
        for request in requests:
            self._replicas.add(request)
        return requests

    def _make_room(self, wanted: int, priority: int, full: QueueFullError) -> None:
        """Let less urgent requests that wait give way; raises ``full`` if they do not suffice."""
        waiting = [each for replica in self._replicas for each in replica.scheduler.waiting]
        running = [each for replica in self._replicas for each in replica.scheduler.running]
        full.retry_after = self._service_times.retry_after(
            len(waiting), running, self._max_num_seqs * len(self._replicas), self._clock()
        )
        ids = who_gives_way(waiting, priority, wanted - self.room)
        if ids is None:
            raise full
        for id in ids:
            self.abort(id)
            self.displaced[id] = QueueFullError(
                "the queue is full, and a more urgent request took this one's place; retry later",
                full.retry_after,
            )

    def abort(self, request_id: str) -> list[Progress]:
        """See `Engine.abort`."""
        requests = self._intake.unfinished(request_id)
        for request in requests:
            self.finish(request, "abort")
        return [
            Progress(request, self.transcripts.end(request), [], None, "abort")
            for request in requests
        ]

    def fail(self, request: Request, error: Exception) -> Progress:
        """End a request for which something went wrong; the others go on."""
        logger.error("request %s failed", request.id, exc_info=error)
        request.error = f"{type(error).__name__}: {error}"
        self.transcripts.forget(request)
        if not request.finished:
            self.finish(request, "error")
        return Progress(request, "", [], None, "error")

    def finish(self, request: Request, reason: FinishReason) -> None:
        """A request has ended; its pages are free, and its id when all its completions have."""
        request.finish_reason = reason
        request.ended = self._clock()
        self._replicas.finish(request)
        self._counters.count_finished(reason)
        self._service_times.ended(request)
        self._ended(request)
        self._intake.ended(request)

    def check_idle(self) -> None:
        """Audit what is held while nothing runs."""
        self._intake.check_idle()
        assert not self.transcripts, "a finished request still has text"
