"""``fjx generate``: complete prompts in this process."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fjx.bench.llm import open_llm, read_sizes
from fjx.cli.options import CommandParser, read_config, resolve
from fjx.cli.pictures import check_picture, write_picture
from fjx.cli.prompts import Prompt, encode, read_prompts, user_message
from fjx.cli.sections import ENGINE, FILE_SECTIONS, SAMPLING
from fjx.config import EngineConfig
from fjx.errors import UserError
from fjx.outputs import CompletionOutput, RequestOutput
from fjx.sampling_params import SamplingParams

if TYPE_CHECKING:
    from fjx.engine.engine import Engine
    from fjx.models.tokenizer import Tokenizer
    from fjx.speculation.runtime.round_log import RoundLog

ON_DEMAND = replace(ENGINE, defaults={"warmup": False})
"""The engine's options: a few prompts need few of the programs that a server may need."""

EXAMPLES = """examples:
  fjx generate --prompt "The capital of France is" --temperature 0
  fjx generate --chat --prompt "Why is the sky blue?" --max-tokens 100
  fjx generate --prompts questions.jsonl --json > answers.jsonl
"""


def add_options(parser: CommandParser) -> None:
    """Add the options of this command."""
    parser.usage = "%(prog)s (--prompt TEXT | --prompts FILE) [options]"
    parser.epilog = EXAMPLES
    prompts = parser.add_argument_group("prompts and output")
    source = prompts.add_mutually_exclusive_group(required=True)
    parser.add_flag(
        source,
        "--prompt",
        metavar="TEXT",
        action="append",
        help="A prompt; may be given several times.",
    )
    parser.add_flag(
        source,
        "--prompts",
        type=Path,
        metavar="FILE",
        help="JSON lines with prompt (text or token ids) or, with --chat, messages; - is stdin.",
    )
    parser.add_flag(
        prompts,
        "--chat",
        action="store_true",
        help="Take each prompt as a user's message and apply the model's chat template.",
    )
    parser.add_flag(
        prompts,
        "--json",
        action="store_true",
        help="Write one JSON object per completion: prompt_tokens, token_ids, text, finish_reason; "
        "steps that brought tokens, and drafted_tokens, accepted_tokens, pruned_tokens of them.",
    )
    parser.add_flag(
        prompts,
        "--draw-rounds",
        type=Path,
        metavar="FILE",
        help="Draw how the first request was speculated for into this .svg or .png file: drafts, "
        "steps, and which tokens proved right.",
    )
    parser.add_section(SAMPLING)
    parser.add_section(ON_DEMAND)


def run(arguments: argparse.Namespace) -> int:
    """Generate and print; 1 where a request ended in an error.

    Raises:
        UserError: the prompts, the options or the model cannot be used.
    """
    file = read_config(arguments, FILE_SECTIONS)
    params = resolve(arguments, SAMPLING, file)
    config = resolve(arguments, ON_DEMAND, file)
    prompts: list[Prompt]
    if arguments.prompts is not None:
        prompts = read_prompts(arguments.prompts, arguments.chat)
    else:
        prompts = [user_message(t) if arguments.chat else t for t in arguments.prompt]
    picture: Path | None = arguments.draw_rounds
    if picture is not None:
        check_picture("draw-rounds", picture)
        if not config.drafts or params.max_draft_tokens == 0:
            raise UserError("draw-rounds: nothing is drafted with these options")
    _check_sizes(prompts, params, config)
    streams = not arguments.json and picture is None and sys.stdout.isatty()
    if streams and len(prompts) == params.n == 1:
        return asyncio.run(_stream(prompts[0], params, config))
    with open_llm(config) as llm:
        token_ids = [encode(prompt, llm.tokenizer) for prompt in prompts]
        log = None if picture is None else _follow_rounds(llm.engine)
        outputs = llm.generate(token_ids, params)
    lines = _json_lines(outputs, params.n) if arguments.json else _texts(outputs)
    for line in lines:
        print(line)
    if picture is not None and log is not None:
        _draw(picture, log, llm.tokenizer)
    return _report_errors(outputs)


def _check_sizes(prompts: Sequence[Prompt], params: SamplingParams, config: EngineConfig) -> None:
    """Check, before the model is loaded, what its configuration alone can tell.

    Raises:
        UserError: a token id or a length can never be served.
    """
    context, vocabulary = read_sizes(config)

    from fjx.engine.input_processor import check_ids, check_params

    check_params(params, vocabulary, config.max_waiting_requests)
    for prompt in prompts:
        if isinstance(prompt, list):
            check_ids("prompt", prompt, vocabulary)
    # How many tokens a text has is not known yet, but it has one.
    shortest = min(len(prompt) if isinstance(prompt, list) else 1 for prompt in prompts)
    for name in ("max_tokens", "min_tokens"):
        wanted = getattr(params, name)
        if wanted is not None and shortest + wanted > context:
            raise UserError(
                f"{name} is {wanted}, but the context holds {context} tokens, prompt and output "
                f"together; use at most {max(context - shortest, 0)}"
            )


async def _stream(prompt: Prompt, params: SamplingParams, config: EngineConfig) -> int:
    """Print the text as it comes."""
    from fjx import AsyncLLM

    llm = AsyncLLM(config)
    outputs = []
    try:
        await llm.start()
        token_ids = encode(prompt, llm.tokenizer)
        async for output in llm.generate(token_ids, params, request_id="generate"):
            outputs.append(output)
            for completion in output.outputs:
                print(completion.text, end="", flush=True)
        print()
    finally:
        await llm.shutdown(drain=0.0)
    return _report_errors(outputs[-1:])


def _follow_rounds(engine: Engine) -> RoundLog:
    """Begin to follow the rounds of the first request.

    Raises:
        UserError: there will be none.
    """
    from fjx.speculation.runtime.round_log import RoundLog

    if engine.speculator is None:
        raise UserError("draw-rounds: nothing is drafted with these options")
    log = engine.speculator.round_log = RoundLog()
    return log


def _draw(path: Path, log: RoundLog, tokenizer: Tokenizer) -> None:
    """Draw what was followed.

    Raises:
        UserError: nothing was, or the file cannot be written.
    """
    from fjx.plots.rounds import rounds_svg

    def text_of(token: int) -> str:
        return tokenizer.token_bytes(token).decode(errors="replace")

    try:
        svg = rounds_svg(log.rounds, text_of, "Rounds of speculation")
    except ValueError as error:
        raise UserError(f"draw-rounds: {error}") from None
    write_picture("draw-rounds", path, svg)


def _texts(outputs: Sequence[RequestOutput]) -> Iterator[str]:
    return (completion.text for output in outputs for completion in output.outputs)


def _json_lines(outputs: Sequence[RequestOutput], n: int) -> Iterator[str]:
    for output in outputs:
        for completion in output.outputs:
            yield json.dumps(_as_json(output, completion, with_index=n > 1), ensure_ascii=False)


def _as_json(
    output: RequestOutput, completion: CompletionOutput, with_index: bool
) -> dict[str, Any]:
    record: dict[str, Any] = {"index": completion.index} if with_index else {}
    record |= {
        "prompt_tokens": len(output.prompt_token_ids),
        "token_ids": completion.token_ids,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "steps": completion.steps,
        "drafted_tokens": completion.drafted_tokens,
        "accepted_tokens": completion.accepted_tokens,
        "pruned_tokens": completion.pruned_tokens,
    }
    if completion.logprobs is not None:
        record["logprobs"] = [asdict(position) for position in completion.logprobs]
    if output.error is not None:
        record["error"] = output.error
    return record


def _report_errors(outputs: Sequence[RequestOutput]) -> int:
    failed = [(number, output.error) for number, output in enumerate(outputs, 1) if output.error]
    for number, error in failed:
        print(f"fjx: prompt {number} failed: {error}", file=sys.stderr)
    return 1 if failed else 0
