"""Offline generation: prompts in, completions out."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.prompt import prompts_of, token_ids
from fjx.engine.start import start_engine
from fjx.errors import RegranularizationError, RequestError
from fjx.models.tokenizer import Tokenizer
from fjx.outputs import EngineStats, HeldMemory, PlanStatus, RequestOutput, SwitchRecord
from fjx.progress_bar import progress_bar
from fjx.regranularization.plan_target import PlanTarget
from fjx.request_outputs import empty_output, extend
from fjx.sampling_params import SamplingParams

Prompt = str | Sequence[int]
"""Text, or token ids."""
Message = Mapping[str, Any]
"""A chat message with ``role`` and ``content``."""
_CHANGE_POLL_SECONDS = 0.005


class LLM:
    """A model ready to generate.

    Example:
        >>> llm = LLM("smollm2-135m")
        >>> (output,) = llm.generate("The sky is", SamplingParams(max_tokens=8, temperature=0))
        >>> output.outputs[0].text
    """

    def __init__(
        self, model: str = "smollm2-135m", *, progress: bool = True, **options: Any
    ) -> None:
        """Load and compile; ``options`` are the fields of `EngineConfig`."""
        self.engine: Engine = start_engine(EngineConfig(model=model, **options), progress)
        self._ids = itertools.count()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.engine.tokenizer

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output, in tokens."""
        return self.engine.max_model_len

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete each prompt; results are in the order of the prompts.

        Args:
            prompts: one prompt or several, as text or as token ids.
            sampling_params: one for all prompts, or one for each.
            use_tqdm: show progress on stderr.

        Raises:
            RequestError: a prompt cannot be served; nothing has run then.
        """
        many = prompts_of(prompts)
        if sampling_params is None:
            sampling_params = SamplingParams()
        if isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params] * len(many)
        if not isinstance(sampling_params, Sequence):
            raise RequestError(
                f"sampling_params must be SamplingParams or a list of them, got {sampling_params!r}"
            )
        if len(sampling_params) != len(many):
            raise ValueError(f"{len(sampling_params)} sampling params for {len(many)} prompts")
        ids = [str(next(self._ids)) for _ in many]
        try:
            outputs = self._run(list(zip(ids, many, sampling_params, strict=True)), use_tqdm)
        except BaseException:
            for id in ids:
                self.engine.abort(id)
            raise
        return [outputs[id] for id in ids]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **template_variables: Any,
    ) -> list[RequestOutput]:
        """Complete one conversation or several, through the model's chat template."""
        one = not messages or isinstance(messages[0], Mapping)
        conversations: Any = [messages] if one else messages
        prompts = [
            self.tokenizer.encode(
                self.tokenizer.apply_chat_template(conversation, **template_variables),
                add_special_tokens=False,
            )
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm)

    def stats(self) -> EngineStats:
        """Counters since the start."""
        return self.engine.stats()

    def memory(self) -> HeldMemory:
        """What the engine holds in memory now."""
        return self.engine.memory()

    def plan_status(self) -> PlanStatus:
        """Which plan serves, and what becomes of it."""
        return self.engine.plans.status()

    def regranularize(self, target: PlanTarget, *, wait: bool = True) -> SwitchRecord:
        """Change to another plan; no token of any request changes.

        Args:
            target: a number of stages, the name or path of a mesh file, or a plan (as JSON values,
                or a value of `fjx.sharding.plan.plan`).
            wait: return when the change is done; otherwise it goes on during the next calls of
                `generate`.

        Raises:
            MeshError: the target does not suit the machine or the model, or both plans do not fit
                into memory.
            RegranularizationBusyError: another change is under way.
            RegranularizationError: the change was aborted; the old plan serves on.
        """
        record = self.engine.regranularize(target)
        if not wait:
            return record
        while self.engine.plans.active:
            self.engine.step()
            self.engine.plans.wait(_CHANGE_POLL_SECONDS)
        last = self.engine.plans.status().last
        assert last is not None
        if last.state == "aborted":
            raise RegranularizationError(
                f"the change of plan was aborted: {last.error}; the old plan serves on"
            )
        return last

    def shutdown(self) -> None:
        """Give up all unfinished requests, and a change of plan that is under way."""
        self.engine.abort_all()
        self.engine.plans.close("the engine was shut down")

    def _run(
        self, prompts: list[tuple[str, Prompt, SamplingParams]], use_tqdm: bool
    ) -> dict[str, RequestOutput]:
        """Feed prompts as the queue has room, and step until all are finished."""
        upcoming: deque[tuple[str, Prompt, list[int], SamplingParams]] = deque()
        for id, prompt, params in prompts:
            ids = token_ids(self.tokenizer, prompt)
            self.engine.check_request(ids, params)
            upcoming.append((id, prompt, ids, params))
        outputs: dict[str, RequestOutput] = {}
        total, tokens = sum(params.n for *_, params in upcoming), 0
        with progress_bar(
            total=total, desc="Generating", unit="completion", disable=not use_tqdm
        ) as bar:
            while upcoming or self.engine.has_work:
                while upcoming and upcoming[0][-1].n <= self.engine.queue_room:
                    id, prompt, ids, params = upcoming.popleft()
                    self.engine.add(id, ids, params)
                    text = prompt if isinstance(prompt, str) else None
                    outputs[id] = empty_output(id, text, ids, params)
                for progress in self.engine.step():
                    tokens += len(progress.token_ids)
                    extend(outputs[progress.request.id], progress)
                    if progress.finish_reason is not None:
                        bar.set_postfix(tokens=tokens, refresh=False)
                        bar.update()
        return outputs
