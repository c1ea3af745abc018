"""From what a client asks for to requests that can be served."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from numbers import Integral

import numpy as np

from fjx.errors import QueueFullError, RequestError
from fjx.sampling_params import SamplingParams
from fjx.scheduling.request import Request


class InputProcessor:
    """Checks what is asked for against the engine's limits, makes requests of it, and knows those
    that are not finished."""

    def __init__(
        self,
        *,
        max_model_len: int,
        vocabulary: int,
        end_tokens: Iterable[int],
        max_waiting: int,
        seed: int | None,
    ) -> None:
        """
        Args:
            max_model_len: longest prompt plus output, in tokens.
            vocabulary: number of token ids.
            end_tokens: end-of-sequence tokens of the model.
            max_waiting: most requests in the queue.
            seed: of the seeds of requests that have none; None: other ones in every run.
        """
        self._max_model_len = max_model_len
        self._vocabulary = vocabulary
        self._end_tokens = frozenset(end_tokens)
        self._max_waiting = max_waiting
        self._seeds = np.random.default_rng(seed)
        self._requests: dict[str, list[Request]] = {}

    def requests(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        priority: int,
        arrival: float,
        room: int,
        cache_salt: str = "",
        bad_words: tuple[tuple[int, ...], ...] = (),
    ) -> list[Request]:
        """The ``params.n`` completions of a prompt that was checked.

        Args:
            arrival: when it came, by the engine's clock.
            room: how many may still wait.
            bad_words: those of ``params`` as tokens.

        Raises:
            RequestError: the id is in use; or id, priority or salt are of a wrong type.
            QueueFullError: there is no room.
        """
        _check_types(request_id, priority, cache_salt)
        if request_id in self._requests:
            raise RequestError(f"request id {request_id!r} is in use")
        if params.n > room:
            raise QueueFullError(
                f"{self._max_waiting - room} requests are waiting, the limit is "
                f"{self._max_waiting}; retry later",
                retry_after=1.0,  # the engine knows better
            )
        seed = params.seed
        if seed is None:
            seed = int(self._seeds.integers(2**63))
        end = self._max_model_len
        if params.max_tokens is not None:
            end = min(end, len(prompt) + params.max_tokens)
        own = frozenset() if params.ignore_eos else self._end_tokens
        made = self._requests[request_id] = [
            Request(
                id=request_id,
                prompt_len=len(prompt),
                tokens=list(prompt),
                params=params,
                seed=seed + index,
                max_len=end,
                arrival=arrival,
                index=index,
                priority=priority,
                end_tokens=own.union(params.stop_token_ids) if params.stop_token_ids else own,
                cache_salt=cache_salt,
                bad_words=bad_words,
                # One completion tells them for all.
                prompt_logprobs=None if index or params.prompt_logprobs is None else [None],
            )
            for index in range(params.n)
        ]
        return made

    @property
    def ids(self) -> list[str]:
        """Ids of the requests that have unfinished completions."""
        return list(self._requests)

    def unfinished(self, request_id: str) -> list[Request]:
        """Completions of this id; none if it is not known."""
        return [each for each in self._requests.get(request_id, ()) if not each.finished]

    def ended(self, request: Request) -> None:
        """A request has ended; its id is free again when all its completions have."""
        if not self.unfinished(request.id):
            del self._requests[request.id]

    def check_idle(self) -> None:
        """Audit what is held while nothing runs."""
        assert not self._requests, "a finished request is still known"

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Check that a request can be served at all.

        Raises:
            RequestError: the prompt is empty, too long, or not of this vocabulary; a number is too
                large.
        """
        if not isinstance(params, SamplingParams):
            raise RequestError(f"params must be SamplingParams, got {reprlib.repr(params)}")
        if not prompt:
            raise RequestError("the prompt is empty; give at least one token")
        output = 0 if params.max_tokens == 0 else 1
        if len(prompt) + output > self._max_model_len:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens, but the context is {self._max_model_len} "
                f"tokens including at least {output} of output; shorten the prompt or raise "
                "max_model_len"
            )
        check_ids("prompt", prompt, self._vocabulary)
        check_params(params, self._vocabulary, self._max_waiting)


def check_params(params: SamplingParams, vocabulary: int, max_waiting: int) -> None:
    """Check what sampling parameters ask of a model and an engine, whatever the prompt.

    Raises:
        RequestError: a token id is not of the vocabulary, or a number is too large.
    """
    for name in ("stop_token_ids", "allowed_token_ids"):
        if len(getattr(params, name) or ()) > vocabulary:
            raise RequestError(f"{name} has more ids than there are: {vocabulary}")
    for name, ids in (
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", params.logit_bias),
        ("allowed_token_ids", params.allowed_token_ids or ()),
    ):
        check_ids(name, ids, vocabulary)
    if params.n > max_waiting:
        raise RequestError(f"n is {params.n}, more than the {max_waiting} that may wait")


def check_ids(name: str, ids: Iterable[int], vocabulary: int) -> None:
    """Check that token ids are of a vocabulary.

    Raises:
        RequestError: one is not; the message calls them ``name``.
    """
    for token in ids:
        if not 0 <= token < vocabulary:
            raise RequestError(
                f"{name} has token id {token}, but the vocabulary ends at {vocabulary - 1}"
            )


def _check_types(request_id: object, priority: object, cache_salt: object) -> None:
    """What the queue compares and the prefix cache hashes must be what it seems to be: nobody could
    be served beside it otherwise."""
    for name, value, kind, expected in (
        ("request_id", request_id, str, "a string"),
        ("priority", priority, Integral, "a whole number"),
        ("cache_salt", cache_salt, str, "a string"),
    ):
        if not isinstance(value, kind):
            raise RequestError(f"{name} must be {expected}, got {reprlib.repr(value)}")
