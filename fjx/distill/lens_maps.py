"""Maps of a logit lens: from the residual stream behind some layers to the one behind the last.

They are fitted by ridge regression to outputs of the training prompts, and kept where they tell
more about the target's next token than the lens without them and than the draft head does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from fjx.distill.corpus import TargetSample
from fjx.distill.target import DistillTarget
from fjx.models.config import ModelConfig
from fjx.models.granules import cut
from fjx.models.reduced_head import ReducedHead

_ROWS = 30_000
"""Tokens that a map is fitted to, and most that it is measured on."""
_RIDGE = 1e-2
"""Relative to the mean square of the residual stream."""
_AT_ONCE = 256
"""Rows whose logits are held at a time."""


class LensAccuracy(NamedTuple):
    """How often the lens behind some layers sees the token that the last one's would choose."""

    as_it_is: float
    mapped: float
    helps: bool
    """Whether the map is worth its memory."""


def fit_maps(
    target: DistillTarget, head: ReducedHead, samples: Sequence[TargetSample], acceptance: float
) -> tuple[dict[int, Float[np.ndarray, "D D"]], dict[int, LensAccuracy]]:
    """Fit a map behind every granule of the second half of the layers.

    Args:
        target: the target.
        head: the tokens that the lens knows.
        samples: outputs, some of them held out.
        acceptance: how often a draft head's first token is right.

    Returns:
        By the number of layers: the maps that help, and what each lens sees of held-out outputs.
    """
    layers = depths(target.config)
    if not layers:
        return {}, {}
    after = [*layers, target.config.num_layers]
    training, held_out = (
        _outputs(target, [sample for sample in samples if sample.held_out is part], after)
        for part in (False, True)
    )
    fitted = _solve(training, len(layers))
    shares = _agreements(_best_token(target, head), held_out, fitted)
    looks = {
        n: LensAccuracy(raw, mapped, mapped > max(raw, acceptance))
        for n, (raw, mapped) in zip(layers, shares, strict=True)
    }
    maps = dict(zip(layers, fitted, strict=True))
    return {n: maps[n] for n in layers if looks[n].helps}, looks


def depths(config: ModelConfig) -> list[int]:
    """Behind how many layers a step may be looked at: where a granule ends in their second half."""
    ends = (granule.stop for granule in cut(config, None))
    return [end for end in ends if config.num_layers / 2 <= end < config.num_layers]


def _outputs(
    target: DistillTarget, samples: Sequence[TargetSample], after: Sequence[int]
) -> Iterator[Float[np.ndarray, "G N D"]]:
    """Residual streams of the rows that chose the samples' output tokens, some thousands."""
    done = rows = 0
    for lengths, streams in target.passes(samples, after):
        starts = np.cumsum([0, *lengths])
        batch = samples[done : done + len(lengths)]
        done += len(lengths)
        chosen = [
            # The first row of a sequence is often far larger than all others.
            np.arange(start + max(sample.prompt_length - 1, 1), stop - 1)
            for sample, start, stop in zip(batch, starts, starts[1:], strict=False)
        ]
        of_batch = streams[:, np.concatenate(chosen)]
        yield of_batch
        rows += of_batch.shape[1]
        if rows >= _ROWS:
            return


def _solve(
    batches: Iterator[Float[np.ndarray, "G N D"]], count: int
) -> list[Float[np.ndarray, "D D"]]:
    """The map from each of the first ``count`` streams to the last one."""
    squares = products = np.zeros(())
    for streams in batches:
        x = streams[:count].astype(np.float64)
        squares = squares + x.transpose(0, 2, 1) @ x
        products = products + x.transpose(0, 2, 1) @ streams[-1].astype(np.float64)
    return [ridge(gram, product) for gram, product in zip(squares, products, strict=True)]


def ridge(
    squares: Float[np.ndarray, "D D"], products: Float[np.ndarray, "D E"]
) -> Float[np.ndarray, "D E"]:
    """The linear map of least squares, from the inputs' products with each other and with the
    outputs, drawn a little towards zero."""
    penalty = _RIDGE * np.trace(squares) / len(squares)
    solved: np.ndarray = np.linalg.solve(squares + penalty * np.eye(len(squares)), products)
    return solved.astype(np.float32)


_Best = Callable[[Float[np.ndarray, "N D"]], Int32[np.ndarray, " N"]]


def _best_token(target: DistillTarget, head: ReducedHead) -> _Best:
    """The likeliest token of each row of a residual stream, as an index of the head's."""
    params = target.logit_params(head)
    run = jax.jit(lambda x: jnp.argmax(head.logits(params, x), axis=1))

    def best(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x, ((0, -len(x) % _AT_ONCE), (0, 0)))
        parts = padded.reshape(-1, _AT_ONCE, x.shape[1])
        return np.concatenate([np.asarray(run(part)) for part in parts])[: len(x)]

    return best


def _agreements(
    best: _Best,
    batches: Iterator[Float[np.ndarray, "G N D"]],
    maps: Sequence[Float[np.ndarray, "D D"]],
) -> list[tuple[float, float]]:
    """By stream: how often its lens agrees with the last one, as it is and mapped."""
    agree, rows = np.zeros((len(maps), 2)), 0
    for streams in batches:
        right = best(streams[-1])
        rows += len(right)
        for number, map in enumerate(maps):
            x = streams[number]
            agree[number] += [np.sum(best(x) == right), np.sum(best(x @ map) == right)]
    return [(round(raw, 4), round(mapped, 4)) for raw, mapped in (agree / max(rows, 1)).tolist()]
