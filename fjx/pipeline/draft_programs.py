"""The programs of a draft head, and where its arrays lie: one device, whatever the plan."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from fjx.kernels.attention import kv_pages_shape, kv_storage_dtype
from fjx.kernels.kv_pages import new_pages
from fjx.kernels.token_rule import gumbel, largest_token, token_probability
from fjx.models.draft_head import DraftHead
from fjx.models.granules import Model, Params
from fjx.pipeline.buckets import bucket_for
from fjx.pipeline.compiler import ProgramSpec, compile_alone
from fjx.pipeline.limits import Limits
from fjx.pipeline.structs import floats, ints, struct, words


class DraftRows(NamedTuple):
    """How each of R rows chooses a drafted token; NumPy arrays on the host, traced ones in a
    program."""

    temperature: Any
    """[R] float32; 0: greedy."""
    seed: Any
    """[R, 2] uint32, see `SamplingRows`."""
    position: Any
    """[R] int32, of the first token of the draft."""


def choose_drafted(
    logits: Float[Array, "R V"], token_ids: Int32[Array, " V"], rows: DraftRows, step: Any
) -> tuple[Int32[Array, " R"], Float[Array, " R"]]:
    """A token of the head's vocabulary for each row, with the noise that the target will choose by,
    and the head's probability of it."""

    def with_noise() -> Array:
        scaled = logits / jnp.where(rows.temperature > 0, rows.temperature, 1.0)[:, None]
        noisy = scaled + gumbel(rows.seed, rows.position + step, token_ids)
        chosen: Array = jnp.where(rows.temperature > 0, largest_token(noisy), largest_token(logits))
        return chosen

    index = jax.lax.cond(jnp.any(rows.temperature > 0), with_noise, lambda: largest_token(logits))
    return token_ids[index], token_probability(logits, index)


@dataclass(frozen=True)
class HeadPrograms:
    """The program specs of a draft head for a target of some limits."""

    head: DraftHead
    target: Model
    limits: Limits
    dtype: jnp.dtype
    device: jax.Device

    @property
    def request_buckets(self) -> tuple[int, ...]:
        """Padded numbers of requests that are drafted for at once."""
        buckets, most = self.limits.row_buckets, self.limits.max_num_seqs
        return (*(size for size in buckets if size < most), bucket_for(most, buckets))

    def specs(self) -> Iterator[ProgramSpec]:
        """All of them."""
        for T in self.limits.row_buckets:
            yield self._feed(T)
        for R in self.request_buckets:
            yield self._first(R)
            yield self._next(R)

    def key(self, name: str, size: int) -> Hashable:
        """Under which a program is found: ``feed`` of so many rows, or ``first`` or ``next`` of so
        many requests."""
        return "draft head", name, size, self.device.id

    def kv_pages(self) -> Any:
        """Zeroed KV memory of the head's layer, with the target's page ids."""
        memory = self._kv_struct()
        there = jax.sharding.SingleDeviceSharding(self.device)
        new = partial(new_pages, memory.shape, memory.dtype)
        return compile_alone(ProgramSpec(self.key("new pages", 0), new, (), result=there))()

    def place(self, tensors: Mapping[str, np.ndarray]) -> tuple[Params, Params]:
        """Parameters of `DraftHead.feed` and of `DraftHead.logits` on the device, from canonical
        tensors."""
        specs = self.head.tensors()
        stored = {name: specs[name].store(values, self.dtype) for name, values in tensors.items()}
        feed = self.head.pack_feed(stored)
        params: tuple[Params, Params] = jax.device_put(
            (feed, self.head.pack_logits(stored)), self.device
        )
        return params

    def _feed(self, T: int) -> ProgramSpec:
        """The target's rows of a step: their estimates, at the rows that choose a token."""
        layout = self.limits.layout(T)

        def feed(params, embed, stream, tokens, following, step, kv_pages):  # type: ignore[no-untyped-def]
            at = layout.split(step)
            ids = jnp.where(following < 0, tokens[-1 - following], following)
            embedded = self.target.embed(embed, ids, at.rows)
            h, kv_pages = self.head.feed(params, stream, embedded, kv_pages, at.rows)
            return h[at.sample_rows], kv_pages

        hidden = self._estimates(T)
        arguments = (
            *self._feed_params(),
            hidden,
            ints(self.limits.sample_buckets[-1]),
            ints(T),
            ints(layout.size),
            self._kv_struct(),
        )
        return self._spec(("feed", T), feed, arguments, donate=(6,))

    def _first(self, R: int) -> ProgramSpec:
        """The first token of each draft, from estimates that `feed` gave."""

        def first(params, token_ids, estimates, index, rows):  # type: ignore[no-untyped-def]
            h = estimates[index]
            logits = self.head.logits(params, h)
            return h, *choose_drafted(logits, token_ids, rows, 0)

        arguments = (
            self.head.abstract_logits(self.dtype),
            ints(len(self.head.token_ids)),
            self._estimates(self.limits.sample_buckets[-1]),
            ints(R),
            self._rows(R),
        )
        return self._spec(("first", R), first, arguments)

    def _next(self, R: int) -> ProgramSpec:
        """The next token of each draft, from the head's own estimates."""
        layout = self.limits.layout(R)

        def following(params, embed, last, ids, h, tokens, step, number, rows, pages):  # type: ignore[no-untyped-def]
            at = layout.split(step).rows
            used = at.request_of >= 0
            at = at._replace(
                positions=jnp.where(used, at.positions + number, at.positions),
                context_len=jnp.where(at.context_len > 0, at.context_len + number, 0),
            )
            embedded = self.target.embed(embed, tokens, at)
            h, pages = self.head.feed(params, h, embedded, pages, at)
            logits = self.head.logits(last, h)
            return h, *choose_drafted(logits, ids, rows, number), pages

        arguments = (
            *self._feed_params(),
            self.head.abstract_logits(self.dtype),
            ints(len(self.head.token_ids)),
            self._estimates(R),
            ints(R),
            ints(layout.size),
            ints(),
            self._rows(R),
            self._kv_struct(),
        )
        return self._spec(("next", R), following, arguments, donate=(9,))

    def _feed_params(self) -> tuple[Any, Any]:
        return (
            self.head.abstract_feed(self.dtype),
            self.target.abstract_embed(self.dtype),
        )

    def _rows(self, R: int) -> DraftRows:
        return DraftRows(floats(R), words(R, 2), ints(R))

    def _estimates(self, rows: int) -> Any:
        return floats(rows, self.head.config.hidden_size)

    def _kv_struct(self) -> Any:
        config, limits = self.head.config, self.limits
        shape = kv_pages_shape(
            1, limits.num_pages, limits.page_size, config.num_kv_heads, config.head_dim
        )
        return struct(shape, kv_storage_dtype(self.dtype))

    def _spec(
        self,
        key: tuple[str, int],
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        donate: tuple[int, ...] = (),
    ) -> ProgramSpec:
        place = jax.sharding.SingleDeviceSharding(self.device)

        def there(leaf: Any) -> Any:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)  # type: ignore[no-untyped-call]

        given = jax.tree.map(there, arguments)
        return ProgramSpec(self.key(*key), function, given, donate)
