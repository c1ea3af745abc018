"""What steps have brought to a request and its reader has not taken yet."""

from __future__ import annotations

import asyncio

from fjx.engine.progress import Progress
from fjx.scheduling.request import Request


class OutputQueue:
    """Between the engine and one reader, in the reader's event loop.

    What comes before the reader has taken the last is added to it: a reader that is slow, or does
    not read, gets larger pieces, not more of them.
    """

    def __init__(self) -> None:
        self._progress: dict[Request, Progress] = {}
        """One of each completion."""
        self._error: Exception | None = None
        self._there = asyncio.Event()

    def put(self, item: Progress | Exception) -> None:
        """A step has brought something, or nothing more will come."""
        if isinstance(item, Exception):
            self._error = item
        else:
            before = self._progress.get(item.request)
            self._progress[item.request] = item if before is None else _both(before, item)
        self._there.set()

    async def take(self) -> list[Progress]:
        """All that has come since the last time; waits for it.

        Raises:
            Exception: the one that was put, once what came before it is taken.
        """
        await self._there.wait()
        progress, self._progress = list(self._progress.values()), {}
        if not progress and self._error is not None:
            raise self._error
        if self._error is None:
            self._there.clear()
        return progress


def _both(first: Progress, second: Progress) -> Progress:
    """As if one step had brought both; ``first`` must not be used any more."""
    first.token_ids.extend(second.token_ids)
    logprobs = second.logprobs
    if first.logprobs is not None:
        logprobs = first.logprobs
        logprobs.extend(second.logprobs or ())
    return second._replace(
        text=first.text + second.text, token_ids=first.token_ids, logprobs=logprobs
    )
