"""The token rule in plain jnp, and what every implementation shares: its inputs and its hash."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, UInt32

_DROPPED = -jnp.inf
_BLOCK = 64


class SamplingRows(NamedTuple):
    """How each of S rows chooses its token."""

    temperature: Float[Array, " S"]
    """0: greedy."""
    top_k: Int32[Array, " S"]
    """0: all."""
    top_p: Float[Array, " S"]
    min_p: Float[Array, " S"]
    seed: UInt32[Array, "S 2"]
    """Low and high half of the request's 64-bit seed."""
    position: Int32[Array, " S"]
    """Position of the token to be chosen, counted from the start of the prompt."""


class LogitEdits(NamedTuple):
    """Penalties, bias and mask of each of S rows; H history entries, B bias entries, W words of 32
    tokens each."""

    history: Int32[Array, "S H"]
    """Known tokens in order; -1 where unused."""
    prompt_len: Int32[Array, " S"]
    """How many of them are the prompt."""
    repetition: Float[Array, " S"]
    presence: Float[Array, " S"]
    frequency: Float[Array, " S"]
    bias_ids: Int32[Array, "S B"]
    """-1 where unused."""
    bias: Float[Array, "S B"]
    allowed: UInt32[Array, "S W"]
    """Bit t % 32 of word t // 32: whether token t may be chosen."""


def largest_token(logits: Float[Array, "S V"]) -> Int32[Array, " S"]:
    """The index of each row's largest value, the first among equals.

    First the largest value of each block, then the place in the best block: XLA turns a maximum
    into vector instructions, but not a search for its place (16 rows of 49,152 on a CPU: 0.16
    instead of 2.1 ms).
    """
    S, V = logits.shape
    padded = jnp.pad(logits, ((0, 0), (0, -V % _BLOCK)), constant_values=_DROPPED)
    blocks = padded.reshape(S, -1, _BLOCK)
    best_block = jnp.argmax(blocks.max(axis=-1), axis=-1)
    best = jnp.take_along_axis(blocks, best_block[:, None, None], axis=1)[:, 0]
    return (best_block * _BLOCK + jnp.argmax(best, axis=-1)).astype(jnp.int32)


def choose_tokens(logits: Float[Array, "S V"], rows: SamplingRows) -> Int32[Array, " S"]:
    """See `fjx.kernels.token_rule.api.choose_tokens`."""
    greedy = largest_token(logits)
    tokens: Array = lax.cond(
        jnp.any(rows.temperature > 0),
        lambda: jnp.where(rows.temperature > 0, _choose_with_noise(logits, rows), greedy),
        lambda: greedy,
    )
    return tokens


def gumbel(
    seed: UInt32[Array, "S 2"], position: Int32[Array, " S"], token_ids: Int32[Array, " V"]
) -> Float[Array, "S V"]:
    """Standard Gumbel noise, a function of (seed, position, token id) alone."""
    bits = mix(row_bits(seed, position)[:, None] ^ token_bits(token_ids)[None, :])
    # log1p keeps the precision near 0, where the largest noise comes from.
    u = (bits.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32)
    return -jnp.log(-jnp.log1p(-jnp.minimum(u, jnp.float32(1 - 2.0**-24))))


def row_bits(seed: UInt32[Array, "S 2"], position: Int32[Array, " S"]) -> UInt32[Array, " S"]:
    """What the noise of a row's tokens has in common."""
    return mix(
        mix(seed[:, 0]) ^ seed[:, 1] ^ (position.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
    )


def token_bits(token_ids: Int32[Array, ...]) -> UInt32[Array, ...]:
    """What the noise of a token has in common in all rows."""
    return mix(token_ids.astype(jnp.uint32) * jnp.uint32(0x85EBCA6B) + 1)


def mix(x: UInt32[Array, ...]) -> UInt32[Array, ...]:
    """A 32-bit finalizer with full avalanche (the "lowbias32" constants of C. Wellons)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def edit_logits(logits: Float[Array, "S V"], edits: LogitEdits) -> Float[Array, "S V"]:
    """Apply penalties, bias and mask; what may not be chosen gets minus infinity."""
    S, V = logits.shape
    row = jnp.arange(S)[:, None]
    used = edits.history >= 0
    generated = used & (jnp.arange(edits.history.shape[1])[None] >= edits.prompt_len[:, None])
    ids = jnp.where(used, edits.history, V)
    seen = jnp.zeros((S, V), jnp.bool_).at[row, ids].set(True, mode="drop")
    count = jnp.zeros((S, V), jnp.float32)
    count = count.at[row, ids].add(generated.astype(jnp.float32), mode="drop")
    repetition = edits.repetition[:, None]
    penalized = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(seen, penalized, logits)
    logits -= edits.frequency[:, None] * count + edits.presence[:, None] * (count > 0)
    bias_ids = jnp.where(edits.bias_ids >= 0, edits.bias_ids, V)
    logits = logits.at[row, bias_ids].add(edits.bias, mode="drop")
    bits = edits.allowed[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)
    allowed = (bits & 1).reshape(S, -1)[:, :V] == 1
    return jnp.where(allowed, logits, _DROPPED)


def token_probability(
    logits: Float[Array, "S V"], tokens: Int32[Array, " S"]
) -> Float[Array, " S"]:
    """The probability of each row's token under the model, without temperature and truncation."""
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    probability: Array = jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1))
    return probability


def top_logprobs(
    logits: Float[Array, "S V"], tokens: Int32[Array, " S"], k: int
) -> tuple[Float[Array, " S"], Int32[Array, " S"], Float[Array, "S k"], Int32[Array, "S k"]]:
    """Log-probability and rank of each row's token, and the k best tokens' values and ids."""
    total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)
    rank = 1 + jnp.sum(logits > chosen, axis=-1, dtype=jnp.int32)
    best, ids = lax.top_k(logits, k)
    return chosen[:, 0] - total, rank, best - total[:, None], ids.astype(jnp.int32)


def _choose_with_noise(logits: Float[Array, "S V"], rows: SamplingRows) -> Int32[Array, " S"]:
    """Draw from the truncated distribution without sorting the vocabulary.

    The best noisy token of a superset of the kept set is the answer if it is itself kept. If not,
    every token of no larger logit is dropped as well, and the search goes on above it: 1 / top_p
    rounds in the mean.

    A token that no other exceeds is always kept, whatever the arithmetic of the mass gives (top_p
    may be 0 in float32, a mass not a number). As each round goes on strictly above the one before,
    the search ends after at most V rounds, which its counter says once more.
    """
    S, V = logits.shape
    scaled = logits / jnp.where(rows.temperature > 0, rows.temperature, 1.0)[:, None]
    top = scaled.max(axis=-1, keepdims=True)
    noisy = scaled + gumbel(rows.seed, rows.position, jnp.arange(V, dtype=jnp.int32))
    k = jnp.where(rows.top_k > 0, rows.top_k, V)
    truncates = (rows.top_k > 0) | (rows.top_p < 1.0)
    needed = lax.cond(
        jnp.any(rows.top_p < 1.0),
        lambda: rows.top_p * _mass_of_top_k(scaled - top, k),
        lambda: jnp.ones_like(rows.top_p),
    )
    # Tokens below the min-p floor are dropped from the start; top-p's mass still counts them.
    floor = jnp.where(rows.min_p > 0, top[:, 0] + jnp.log(jnp.maximum(rows.min_p, 1e-30)), _DROPPED)

    def draw(floor: Array, strict: Array) -> tuple[Array, Array]:
        alive = jnp.where(strict[:, None], scaled > floor[:, None], scaled >= floor[:, None])
        token = largest_token(jnp.where(alive, noisy, _DROPPED))
        return token, jnp.take_along_axis(scaled, token[:, None], axis=-1)[:, 0]

    def kept(logit: Array) -> Array:
        above = scaled > logit[:, None]
        mass = jnp.sum(jnp.where(above, jnp.exp(scaled - top), 0.0), axis=-1)
        inside_top_p = (mass < needed) | (rows.top_p >= 1.0)
        count = jnp.sum(above, axis=-1)
        is_kept: Array = ~truncates | (count == 0) | ((count < k) & inside_top_p)
        return is_kept

    def is_unresolved(state: tuple[Array, Array, Array, Array]) -> Array:
        *_, done, rounds = state
        return (rounds < V) & ~jnp.all(done)

    def search(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        token, logit, done, rounds = state
        next_token, next_logit = draw(logit, jnp.ones_like(done))
        next_token = jnp.where(done, token, next_token)
        next_logit = jnp.where(done, logit, next_logit)
        return next_token, next_logit, done | kept(next_logit), rounds + 1

    token, logit = draw(floor, jnp.zeros((S,), jnp.bool_))
    done = lax.cond(jnp.any(truncates), lambda: kept(logit), lambda: ~truncates)
    state = (token, logit, done, jnp.int32(0))
    chosen: Array = lax.while_loop(is_unresolved, search, state)[0]
    return chosen


def _mass_of_top_k(shifted: Float[Array, "S V"], k: Int32[Array, " S"]) -> Float[Array, " S"]:
    """Sum of exp over the tokens that top-k keeps, ties at the k-th value included."""
    weights = jnp.exp(shifted)

    def of_some() -> Array:
        # Bisect the bits of the largest threshold that keeps at least k tokens.
        keys = _order_preserving_bits(shifted)

        def refine(i: Array, threshold: Array) -> Array:
            trial = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
            enough = jnp.sum(keys >= trial[:, None], axis=-1) >= k
            return jnp.where(enough, trial, threshold)

        threshold = lax.fori_loop(0, 32, refine, jnp.zeros(k.shape, jnp.uint32))
        return jnp.sum(jnp.where(keys >= threshold[:, None], weights, 0.0), axis=-1)

    limited: Bool[Array, ""] = jnp.any(k < shifted.shape[1])
    mass: Array = lax.cond(limited, of_some, lambda: weights.sum(axis=-1))
    return mass


def _order_preserving_bits(x: Float[Array, ...]) -> UInt32[Array, ...]:
    """Unsigned integers in the same order as the floats."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(0x80000000))
