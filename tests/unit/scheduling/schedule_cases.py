"""A scheduler, requests for it, and a host that reads its steps, without any model."""

from __future__ import annotations

from itertools import count as counter

from fjx.sampling_params import SamplingParams
from fjx.scheduling.page_pool import PagePool
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows, Scheduler

SIZE = 4
"""Token slots of a page."""
arrivals = counter()


def make(
    pages: int = 64,
    seqs: int = 4,
    tokens: int = 16,
    share_prefixes: bool = False,
    drafts: int = 0,
) -> Scheduler:
    return Scheduler(PagePool(pages + 1, SIZE, share_prefixes), seqs, tokens, drafts)


def request(
    prompt: int | list[int], *, name: str = "", max_tokens: int = 8, priority: int = 0
) -> Request:
    arrival = next(arrivals)
    tokens = [1000 * arrival + i for i in range(prompt)] if isinstance(prompt, int) else prompt
    return Request(
        id=name or str(arrival),
        prompt_len=len(tokens),
        tokens=list(tokens),
        params=SamplingParams(),
        seed=0,
        max_len=len(tokens) + max_tokens,
        arrival=float(arrival),
        priority=priority,
    )


def add(scheduler: Scheduler, *requests: Request) -> None:
    for each in requests:
        scheduler.add(each)


def step(scheduler: Scheduler) -> dict[str, int]:
    """One synchronous step; returns how many rows each request got."""
    scheduled = scheduler.schedule()
    rows = {granted.request.id: granted.count for granted in scheduled}
    for granted in scheduled:
        scheduler.share_full_pages(granted.request)
    read(scheduler, scheduled)
    return rows


def read(scheduler: Scheduler, scheduled: list[ScheduledRows]) -> None:
    """The host reads the tokens of a step, and finishes what has reached its length."""
    for granted in scheduled:
        each = granted.request
        if not granted.samples:
            continue
        each.unread -= 1
        if each.finished:
            continue
        each.tokens.append(len(each.tokens))
        if len(each.tokens) >= each.max_len:
            finish(scheduler, each)


def finish(scheduler: Scheduler, each: Request) -> None:
    each.finish_reason = "length"
    scheduler.finish(each)
