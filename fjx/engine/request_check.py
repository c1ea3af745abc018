"""What a request must be to be served at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fjx.engine.batch_builder import MAX_END_TOKENS
from fjx.errors import RequestError
from fjx.sampling_params import SamplingParams


def check_request(
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    max_model_len: int,
    vocabulary: int,
    end_tokens: int,
    max_waiting: int,
) -> None:
    """Check a request against the engine's limits.

    Args:
        prompt: token ids.
        params: what is asked for.
        max_model_len: longest prompt plus output, in tokens.
        vocabulary: number of token ids.
        end_tokens: end-of-sequence tokens of the model.
        max_waiting: most requests in the queue.

    Raises:
        RequestError: the prompt is empty, too long, or not of this vocabulary; a number is too
            large.
    """
    if not prompt:
        raise RequestError("the prompt is empty; give at least one token")
    if len(prompt) >= max_model_len:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens, but the context is {max_model_len} "
            "tokens including at least one of output; shorten the prompt or raise max_model_len"
        )
    for name, ids in (
        ("prompt", prompt),
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", params.logit_bias),
    ):
        _check_ids(name, ids, vocabulary)
    if len(params.stop_token_ids) + end_tokens > MAX_END_TOKENS:
        raise RequestError(
            f"stop_token_ids has {len(params.stop_token_ids)} ids, more than "
            f"{MAX_END_TOKENS - end_tokens}"
        )
    if params.n > max_waiting:
        raise RequestError(f"n is {params.n}, more than the {max_waiting} that may wait")


def _check_ids(name: str, ids: Iterable[int], vocabulary: int) -> None:
    for token in ids:
        if not 0 <= token < vocabulary:
            raise RequestError(
                f"{name} has token id {token}, but the vocabulary ends at {vocabulary - 1}"
            )
