"""Where training begins: the target's last block, behind a linear estimate of its input."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from fjx.distill.corpus import TargetSample
from fjx.distill.target import DistillTarget, whole_requests
from fjx.models.draft_head import DraftHead

_ROWS = 20_000
"""Rows that the estimate is fitted to."""
_RIDGE = 1e-3
"""Relative to the mean square of the inputs."""


def initial_tensors(
    head: DraftHead, target: DistillTarget, samples: Sequence[TargetSample]
) -> dict[str, np.ndarray]:
    """Canonical tensors of an untrained head, float32.

    ``fuse.project`` is the least-squares estimate, from x_t and the embedding of token t+1, of what
    the target's last block was given at t+1; the block is the target's own.
    """
    last = f"layers.{target.config.num_layers - 1}."
    tensors = {}
    for name, spec in head.trained_tensors().items():
        if name.startswith("layers.0."):
            tensors[name] = target.host[last + name.removeprefix("layers.0.")]
        else:
            tensors[name] = np.ones(spec.shape, np.float32)
    tensors["fuse.project"] = _least_squares(target, samples)
    return tensors


def _least_squares(target: DistillTarget, samples: Sequence[TargetSample]) -> np.ndarray:
    D = target.config.hidden_size
    squares, products, rows = np.zeros((2 * D, 2 * D)), np.zeros((2 * D, D)), 0
    layers = target.config.num_layers
    for lengths, (before_last, final) in target.passes(samples, [layers - 1, layers]):
        tokens = np.concatenate([sample.tokens for sample in samples[: len(lengths)]])
        samples = samples[len(lengths) :]
        ragged = whole_requests(lengths, len(tokens), max(lengths))
        starts = np.cumsum([0, *lengths[:-1]])
        # The first row of a sequence is often far larger than all others.
        mine = np.setdiff1d(np.arange(len(tokens) - 1), [*starts, *(starts[1:] - 1)])
        at = ragged._replace(positions=ragged.positions[mine])
        embedded = np.asarray(target.embed(target.embed_params, jnp.asarray(tokens[mine + 1]), at))
        inputs = np.hstack([_normed(final[mine]), _normed(embedded)])
        goals = before_last[mine + 1]
        scale = 1 / np.sqrt(np.mean(goals * goals, axis=1, keepdims=True) + 1e-6)
        inputs, goals = inputs * scale, goals * scale  # rows count alike
        squares += inputs.T @ inputs
        products += inputs.T @ goals
        rows += len(mine)
        if rows >= _ROWS:
            break
    ridge = _RIDGE * np.trace(squares) / len(squares)
    solved: np.ndarray = np.linalg.solve(squares + ridge * np.eye(2 * D), products)
    return solved.astype(np.float32)


def _normed(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-6))
