"""The engine without what makes it fast: the shortest way to the tokens, and the tests' oracle."""

from __future__ import annotations

from collections.abc import Sequence

from fjx.engine.detokenizer import Detokenizer
from fjx.engine.input_processor import InputProcessor
from fjx.engine.progress import commit, score
from fjx.models.tokenizer import Tokenizer
from fjx.pipeline.protocol import Pipeline
from fjx.pipeline.step_output import StepOutput
from fjx.sampling_params import SamplingParams
from fjx.scheduling.bad_words import bad_word_tokens
from fjx.scheduling.batch_builder import BatchBuilder
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows, Scheduler


def generate_plainly(
    executor: Pipeline,
    scheduler: Scheduler,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[list[int], SamplingParams]],
) -> list[Request]:
    """Generate to the end: schedule a step, run it, collect it, until no request is left.

    What `fjx.engine.engine.Engine.step` does beyond is left out: no step is in flight while the
    host works, nothing is drafted, the plan does not change, and all requests are one group. By the
    token rule the tokens are the same.

    Args:
        executor: runs steps.
        scheduler: owns the executor's pages; has no other requests.
        tokenizer: the model's.
        prompts: with how their tokens are chosen.

    Returns:
        The finished requests, ``n`` for each prompt.

    Raises:
        RequestError: a prompt cannot be served.
    """
    requests = _requests(executor, tokenizer, prompts)
    builder = BatchBuilder(
        executor.limits, tokenizer.eos_token_ids, executor.programs.model.config.vocab_size
    )
    texts = Detokenizer(tokenizer)
    for request in requests:
        texts.begin(request)
        scheduler.add(request)
    while scheduler.has_work:
        scheduled = scheduler.schedule()
        output = executor.dispatch(builder.build(scheduled))
        _collect(scheduler, scheduled, output, texts)
    return requests


def _collect(
    scheduler: Scheduler, scheduled: list[ScheduledRows], output: StepOutput, texts: Detokenizer
) -> None:
    """Commit what a step chose, and let go of the requests that it ends."""
    tokens, end = output.read_tokens(), 0
    for rows in scheduled:
        begin, end = end, end + rows.reads
        for row, position in enumerate(rows.scored_positions, start=begin):
            score(rows.request, position, output, row)
        if rows.samples:
            first = begin + rows.scored
            progress, _ = commit(rows.request, tokens[first:end], output, first, texts)
            rows.request.finish_reason = progress.finish_reason
            if rows.request.finished:
                scheduler.finish(rows.request)


def _requests(
    executor: Pipeline, tokenizer: Tokenizer, prompts: Sequence[tuple[list[int], SamplingParams]]
) -> list[Request]:
    processor = InputProcessor(
        max_model_len=executor.limits.max_model_len,
        vocabulary=executor.programs.model.config.vocab_size,
        end_tokens=tokenizer.eos_token_ids,
        max_waiting=sum(params.n for _, params in prompts),
        seed=0,
    )
    requests: list[Request] = []
    for number, (prompt, params) in enumerate(prompts):
        processor.check(prompt, params)
        bad_words = bad_word_tokens(tokenizer, params.bad_words)
        requests += processor.requests(
            str(number), prompt, params, 0, 0.0, params.n, bad_words=bad_words
        )
    return requests
