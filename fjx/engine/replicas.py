"""All replicas of the model, and which of them has which request."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from fjx.pipeline.protocol import Pipeline
from fjx.scheduling.balance import even_out
from fjx.scheduling.microbatches import MicrobatchGroup
from fjx.scheduling.replica import Replica
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import Scheduler


class Replicas:
    """Gives requests to replicas, and takes part in changes of their number."""

    def __init__(
        self,
        executors: Sequence[Pipeline],
        share_prefixes: bool,
        end_tokens: tuple[int, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            executors: one for each replica.
            share_prefixes: whether equal beginnings of prompts share pages.
            end_tokens: end-of-sequence tokens of the model.
            clock: the engine's, seconds.
        """
        self._share_prefixes, self._end_tokens = share_prefixes, end_tokens
        self._clock = clock
        self._all = [self._new(executor) for executor in executors]
        self._replica_of: dict[Request, Replica] = {}
        self._ended_counts: Counter[str] = Counter()
        """Counts of schedulers that have ended."""

    def _new(self, executor: Pipeline) -> Replica:
        return Replica(executor, self._share_prefixes, self._end_tokens, self._clock)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, index: int) -> Replica:
        return self._all[index]

    @property
    def executors(self) -> list[Pipeline]:
        """The executors of all replicas."""
        return [replica.executor for replica in self._all]

    @property
    def lost(self) -> list[Replica]:
        """The replicas whose pages are lost."""
        return [replica for replica in self._all if replica.executor.lost]

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return any(replica.scheduler.has_work for replica in self._all)

    @property
    def groups(self) -> list[MicrobatchGroup]:
        """Whose turn it is, in each replica that has anything to do."""
        return [group for replica in self._all if (group := replica.group) is not None]

    @property
    def num_running(self) -> int:
        """Requests in batches."""
        return sum(len(replica.scheduler.running) for replica in self._all)

    @property
    def num_waiting(self) -> int:
        """Requests in queues."""
        return sum(replica.scheduler.num_waiting for replica in self._all)

    @property
    def kv_usage(self) -> float:
        """Share of the pages that requests hold, 0 to 1."""
        return sum(replica.scheduler.pool.usage for replica in self._all) / len(self._all)

    @property
    def kv_pages(self) -> int:
        """Pages that requests can hold."""
        return sum(replica.scheduler.pool.num_pages - 1 for replica in self._all)

    @property
    def counts(self) -> Counter[str]:
        """Preemptions, prompt tokens looked up in the prefix cache, and those found there, since
        the start."""
        counts = Counter(self._ended_counts)
        for replica in self._all:
            counts.update(_counts(replica.scheduler))
        return counts

    def add(self, request: Request) -> None:
        """Give a request to the replica with the fewest unfinished ones."""
        self._assign(request, min(self._all, key=lambda replica: replica.load))

    def _assign(self, request: Request, replica: Replica) -> None:
        self._replica_of[request] = replica
        replica.scheduler.add(request)

    def finish(self, request: Request) -> None:
        """Take a finished or cancelled request out, wherever it is."""
        scheduler = self._replica_of.pop(request).scheduler
        scheduler.share_full_pages(request)
        scheduler.finish(request)

    def adopt(self, executors: Sequence[Pipeline]) -> None:
        """Go on with the executors of a new plan, while no step is in flight. Requests of replicas
        that end, and a share of those that wait, go to others."""
        dropped = self._all[len(executors) :]
        for replica, executor in zip(self._all, executors, strict=False):
            replica.executor = executor
        begun = [self._new(executor) for executor in executors[len(self._all) :]]
        self._all = [*self._all[: len(executors)], *begun]
        for replica in dropped:
            self._ended_counts.update(_counts(replica.scheduler))
            for request in replica.scheduler.take_all():
                self.add(request)
        if begun:
            self._even_out()

    def _even_out(self) -> None:
        """Let new replicas have their share of the requests that wait."""
        queues = [replica.scheduler.waiting for replica in self._all]
        moves = even_out([replica.load for replica in self._all], queues)
        for request, _ in moves:
            self._replica_of[request].scheduler.take(request)
        for request, to in moves:
            self._assign(request, self._all[to])

    def check_idle(self) -> None:
        """Audit pages and slots while nothing runs; see `Scheduler.check`."""
        for replica in self._all:
            replica.scheduler.check()
        assert not self._replica_of, "a finished request still has a replica"


def _counts(scheduler: Scheduler) -> dict[str, int]:
    return {
        "preemptions": scheduler.num_preemptions,
        "prefix_queries": scheduler.prefix_queries,
        "prefix_hits": scheduler.prefix_hits,
    }
