"""A stand-in for AsyncLLM: it says a scripted text, one byte a token, at a scripted pace.

Its changes of plan take scripted times and end as scripted; see ``FakePlans``.
"""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fjx import (
    CompletionOutput,
    EngineConfig,
    EngineDeadError,
    EngineStats,
    PlanStatus,
    PositionLogprobs,
    RequestError,
    RequestOutput,
    RequestTiming,
    SamplingParams,
    SwitchRecord,
    TokenLogprob,
)
from tests.unit.serving.fake_plans import FakePlans

EOS, BOS = 256, 257


class ByteTokenizer:
    """A byte is a token, so that characters beyond ASCII are several tokens."""

    bos_token_id, eos_token_ids = BOS, (EOS,)
    chat_template: str | None = "{# roles: system user assistant tool; fields: name, thoughts #}"
    """What the template below knows; it leaves out messages of other roles."""
    tool_use: str | None = None
    """The template of that name."""

    @property
    def tool_template(self) -> str | None:
        return self.tool_use or self.chat_template

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [BOS, *text.encode()] if add_special_tokens else list(text.encode())

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        stream = self.stream(skip_special_tokens)
        return stream.add(ids) + stream.flush()

    def token_bytes(self, token_id: int) -> bytes:
        return {EOS: b"<eos>", BOS: b"<bos>"}.get(token_id) or bytes([token_id])

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        if messages[-1]["role"] == "system":
            raise RequestError("the last message must not come from the system")
        text = "".join(f"{name}={value}\n" for name, value in variables.items())
        for message in messages:
            if message["role"] in ("system", "user", "assistant", "tool", "critic"):
                text += f"{message['role']}: {message['content']}\n"
        if continue_final_message:
            return text.removesuffix("\n")
        return text + ("assistant: " if add_generation_prompt else "")

    def stream(self, skip_special_tokens: bool = True, continuation: bool = False) -> ByteStream:
        return ByteStream(self, skip_special_tokens)


class ByteStream:
    def __init__(self, tokenizer: ByteTokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, ids: Sequence[int]) -> str:
        kept = [token for token in ids if token < EOS or not self._skip]
        return self._utf8.decode(b"".join(self._tokenizer.token_bytes(token) for token in kept))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


@dataclass(frozen=True)
class Call:
    """What the server asked of the engine."""

    prompt: list[int]
    params: SamplingParams
    request_id: str
    priority: int
    cache_salt: str | None = None


class FakeLLM:
    """Answers every request with ``reply``; completion i of n with ``reply`` + str(i)."""

    def __init__(self, reply: str = "Hello", token_seconds: float = 0.0) -> None:
        self.config = EngineConfig(model="tiny")
        self.tokenizer = ByteTokenizer()
        self.max_model_len = 100
        self.vocab_size = 258
        self.is_ready = True
        self.error: str | None = None
        self.stalled_seconds = 0.0
        self.hangs = False
        """Whether it does not stop."""
        self.reply = reply
        self.token_seconds = token_seconds
        self.cached_tokens = 0
        self.preemptions = 0
        self.drafted = self.accepted = 0
        """Drafted and accepted tokens of each step: it brings the accepted ones and one more."""
        self.refuse: Exception | None = None
        """Raised instead of the first token."""
        self.fail_after: int | None = None
        """Tokens after which the engine dies."""
        self.load_seconds = 0.0
        self.load_error: Exception | None = None
        self.engine_stats = EngineStats()
        self.calls: list[Call] = []
        self.aborted: list[str] = []
        self.stopped = False
        self.plans = FakePlans()

    def plan_status(self) -> PlanStatus:
        return self.plans.status

    async def regranularize(
        self, target: int | str | Mapping[str, Any], *, wait: bool = True
    ) -> SwitchRecord:
        return await self.plans.change(target, wait)

    async def abort_regranularization(self) -> bool:
        return self.plans.abort()

    async def start(self) -> None:
        self.is_ready = False
        await asyncio.sleep(self.load_seconds)
        if self.load_error is not None:
            raise self.load_error
        self.is_ready = True

    def stats(self) -> EngineStats:
        return self.engine_stats

    async def ended(self) -> None:
        while self.error is None and not self.stopped:
            await asyncio.sleep(0.01)

    async def shutdown(self, drain: float | None, patience: float | None = None) -> bool:
        self.stopped = True
        if self.hangs:
            await asyncio.sleep(patience or 0)
        return not self.hangs

    async def generate(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        request_id: str,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        assert isinstance(prompt, list)
        self.calls.append(Call(prompt, params, request_id, priority, cache_salt))
        if self.refuse is not None:
            raise self.refuse
        try:
            async for output in self._outputs(prompt, params, request_id):
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request_id)
            raise

    async def _outputs(
        self, prompt: list[int], params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        arrival = time.monotonic()
        first: float | None = None
        running = [self._completion(index, params) for index in range(params.n)]
        produced = 0
        while running:
            await asyncio.sleep(self.token_seconds)
            if self.fail_after is not None and produced >= self.fail_after:
                raise EngineDeadError("the engine died: the step failed")
            if self.stopped:
                raise EngineDeadError("the engine was shut down before the request finished")
            parts = [completion.pop(0) for completion in running]
            running = [completion for completion in running if completion]
            produced += 1
            now = time.monotonic()
            first = first or now
            scores = None
            if params.prompt_logprobs is not None and produced == 1:
                scores = [None, *(_scores(token, params.prompt_logprobs) for token in prompt[1:])]
            yield RequestOutput(
                request_id=request_id,
                prompt=None,
                prompt_token_ids=prompt,
                outputs=parts,
                finished=not running,
                num_cached_tokens=self.cached_tokens,
                prompt_logprobs=scores,
                timing=RequestTiming(arrival, arrival, first, None if running else now),
            )

    def _completion(self, index: int, params: SamplingParams) -> list[CompletionOutput]:
        text = self.reply + (str(index) if params.n > 1 else "")
        stop_reason = next((stop for stop in params.stop if stop in text), None)
        if stop_reason is not None:
            text = text[: text.index(stop_reason)]
        tokens = [*text.encode(), EOS]
        length = len(tokens) if params.max_tokens is None else min(len(tokens), params.max_tokens)
        stream = self.tokenizer.stream()
        parts = [] if length else [CompletionOutput(index=index)]
        for step, begin in enumerate(range(0, length, 1 + self.accepted), start=1):
            brought = tokens[begin : min(begin + 1 + self.accepted, length)]
            part = CompletionOutput(
                index=index,
                text=stream.add(brought),
                token_ids=brought,
                steps=step,
                drafted_tokens=step * self.drafted,
                accepted_tokens=begin + len(brought) - step,
                preemptions=self.preemptions,
            )
            if params.logprobs is not None:
                part.logprobs = [_logprobs(token, params.logprobs) for token in brought]
            parts.append(part)
        parts[-1].finish_reason = "stop" if length == len(tokens) else "length"
        parts[-1].stop_reason = stop_reason
        return parts


def _scores(token: int, count: int) -> PositionLogprobs:
    """Of a prompt's token: the next ids are likelier."""
    top = tuple(
        TokenLogprob((token + rank) % 256, -0.25 - rank, rank) for rank in range(1, count + 1)
    )
    return PositionLogprobs(TokenLogprob(token, -9.0, 9), top)


def _logprobs(token: int, count: int) -> PositionLogprobs:
    """The token itself is the likeliest; the next ids follow, the last of them impossible."""
    values = [-0.5, -1.5, float("-inf")]
    top = tuple(
        TokenLogprob((token + rank) % 256 if rank else token, values[min(rank, 2)], rank + 1)
        for rank in range(count)
    )
    return PositionLogprobs(TokenLogprob(token, -0.5, 1), top)
