"""Where a model may be cut into granules, read from its traced program instead of assumed.

A cut preserves the computation where one value crosses it: the residual stream. The whole model is
traced once, layer by layer and from shapes alone, with a marker (`mark`) at each boundary;
`live_across` reads from the jaxpr what crosses each marker. The order is that of the trace: a value
crosses the boundaries between the piece that made it and those that use it. What does not cross:

- The step's own inputs (tokens, rows), which every stage is given, and what follows from them and
  constants alone, such as RoPE tables, which each stage computes for itself.
- Results that no other piece reads, such as updated KV pages.

Parameters and KV pages lie with one piece. Those that another piece uses would be needed on both
sides, so they cross the boundaries in between. (Tied embeddings are two parameters, stored twice.)

Reading the top level of the jaxpr suffices: a nested jaxpr (jit, scan, cond, custom_jvp) sees only
the operands of its equation, and what a function closes over becomes an operand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, JaxprEqn, Var

from fjx.errors import ModelError
from fjx.kernels.attention import kv_pages_shape, kv_storage_dtype
from fjx.kernels.ragged import RaggedRows
from fjx.models.granules import Model, cut
from fjx.wording import counted, listed

MARKER = "fjx cut "
ROWS, REQUESTS, PAGES, PAGE_SIZE = 8, 2, 2, 16  # of the trace; what crosses depends on none


class Input(NamedTuple):
    """One input of a marked function."""

    name: str
    piece: int | None
    """The piece that holds it: 0 before marker 0, i + 1 after marker i. None: the step's own."""


@dataclass(eq=False)
class Value:
    """One value of a marked function, and the pieces that it ties together."""

    origin: Input | JaxprEqn
    aval: Any
    made_in: int
    """The piece that holds it or made it."""
    users: set[int] = field(default_factory=set)

    def crosses(self, boundary: int) -> bool:
        """Whether both sides of this marker need it."""
        pieces = {self.made_in, *self.users}
        return min(pieces) <= boundary < max(pieces)


class Boundary(NamedTuple):
    """What meets at one marker: the cut is legal where only what is marked is live."""

    marked: tuple[Value, ...]
    live: tuple[Value, ...]


def mark(x: Any, boundary: int) -> Any:
    """``x`` itself, marked as what may cross a boundary; these count from 0, in traced order."""
    return checkpoint_name(x, f"{MARKER}{boundary}")  # type: ignore[no-untyped-call]


def live_across(traced: ClosedJaxpr, inputs: Sequence[Input]) -> dict[int, Boundary]:
    """What crosses each marker of a function with these inputs, traced by `jax.make_jaxpr`."""
    values: dict[Var, Value] = {}  # without those that every stage has or computes for itself
    marked: dict[int, list[Value]] = {}
    for var, given in zip(traced.jaxpr.invars, inputs, strict=True):
        if given.piece is not None:
            values[var] = Value(given, var.aval, given.piece)
    piece = 0
    for equation in traced.jaxpr.eqns:
        variables = [var for var in equation.invars if isinstance(var, Var)]
        operands = [values[var] for var in variables if var in values]
        if (boundary := _boundary(equation)) is not None:
            piece = boundary + 1
            marked.setdefault(boundary, []).extend(operands)
            values |= {var: operand for var in equation.outvars for operand in operands}
            continue
        for operand in operands:
            operand.users.add(piece)
        for var in equation.outvars:
            # What is no array is a mutable reference, which anything may be written into.
            if operands or not isinstance(var.aval, jax.core.ShapedArray):
                values[var] = Value(equation, var.aval, piece)
    distinct = dict.fromkeys(values.values())
    return {
        boundary: Boundary(tuple(of), tuple(value for value in distinct if value.crosses(boundary)))
        for boundary, of in marked.items()
    }


def _boundary(equation: JaxprEqn) -> int | None:
    name = equation.params["name"] if equation.primitive.name == "name" else ""
    return int(name.removeprefix(MARKER)) if name.startswith(MARKER) else None


def trace_layers(model: Model, dtype: jnp.dtype) -> tuple[ClosedJaxpr, list[Input]]:
    """Trace a model stored in ``dtype``, marker i before layer i and the last before the head.

    Each layer is traced as a granule of its own. Nothing runs, and no weight is made.
    """
    config, layerwise = model.config, Model(model.config, granule_layers=1)
    struct: Any = jax.ShapeDtypeStruct
    pages = kv_pages_shape(1, PAGES, PAGE_SIZE, config.num_kv_heads, config.head_dim)
    layer = layerwise.abstract_granule(0, dtype)  # the same for all, see `Model`
    layer["KV pages"] = struct(pages, kv_storage_dtype(jnp.dtype(dtype)))
    pieces = [model.abstract_embed(dtype), *[layer] * config.num_layers, model.abstract_head(dtype)]
    shapes = [(ROWS,), (ROWS,), (REQUESTS + 1,), (REQUESTS,), (REQUESTS, PAGES)]
    rows = RaggedRows._make(struct(shape, jnp.int32) for shape in shapes)

    def whole(pieces: list[Any], tokens: Any, rows: RaggedRows) -> Any:
        embed, *layers, head = pieces
        x, pages = layerwise.embed(embed, tokens, rows), []
        for boundary, layer in enumerate(layers):
            x, after = layerwise.granule(layer, mark(x, boundary), layer["KV pages"], rows)
            pages.append(after)
        return layerwise.head(head, mark(x, len(layers))), pages

    inputs = [
        Input(jax.tree_util.keystr(path[-1:], simple=True), piece)
        for piece, held in enumerate(pieces)
        for path, _ in jax.tree_util.tree_leaves_with_path(held)
    ]
    inputs += [Input(name, None) for name in ("tokens", *RaggedRows._fields)]
    return jax.make_jaxpr(whole)(pieces, rows.positions, rows), inputs


def illegal_cuts(model: Model, dtype: jnp.dtype) -> dict[int, str]:
    """The layers before which a model stored in ``dtype`` cannot be cut, and what crosses there.

    All layers are checked, whatever the model's granules; ``num_layers`` stands for the head.
    """
    layers = model.config.num_layers
    expected: Any = jax.core.ShapedArray((ROWS, model.config.hidden_size), jnp.dtype(jnp.float32))
    pieces = ["the embedding", *(f"layer {layer}" for layer in range(layers)), "the head"]
    illegal: dict[int, str] = {}
    boundaries = live_across(*trace_layers(model, dtype))
    for boundary in range(layers + 1):
        marked, live = boundaries[boundary]  # a lost marker must not pass for a legal cut
        stream = [value.aval for value in marked if value in live]
        others = [_described(value, pieces) for value in live if value not in marked]
        reasons = []
        if [(aval.shape, aval.dtype) for aval in stream] != [(expected.shape, expected.dtype)]:
            given = listed(aval.str_short() for aval in stream)
            reasons.append(f"the residual stream is {given}, not {expected.str_short()}")
        if others:
            count, shown = counted(len(others), "value"), "; ".join(others[:3])
            reasons.append(f"beside the residual stream, {count} would cross ({shown})")
        illegal |= {boundary: "; ".join(reasons)} if reasons else {}
    return illegal


def check_cuts(model: Model, dtype: jnp.dtype) -> None:
    """Check that only the residual stream crosses the boundaries of the model's granules.

    Raises:
        ModelError: something else crosses; the message names it, and granules that avoid it.
    """
    config, depth, illegal = model.config, len(model.granules[0]), illegal_cuts(model, dtype)

    def wrong(granules: Sequence[range]) -> list[int]:
        starts = [*(granule.start for granule in granules), config.num_layers]
        return [start for start in starts if start in illegal]

    if not (found := wrong(model.granules)):
        return
    before = "the head" if found[0] == config.num_layers else f"layer {found[0]}"
    depths = [other for other in range(1, config.num_layers + 1) if not wrong(cut(config, other))]
    remedy = "no granules avoid this, so the family's modules must be changed"
    if depths:
        nearest = min(depths, key=lambda other: abs(other - depth))
        remedy = f"give granules of {counted(nearest, 'layer')} (granule_layers={nearest})"
    raise ModelError(
        f"the {config.family} model in granules of {counted(depth, 'layer')} cannot be cut before "
        f"{before}: {illegal[found[0]]}; {remedy}"
    )


def _described(value: Value, pieces: Sequence[str]) -> str:
    what, made_in = value.aval.str_short(), pieces[value.made_in]
    users = listed(pieces[piece] for piece in sorted(value.users))
    if isinstance(value.origin, Input):
        return f"{what}, the {value.origin.name} of {made_in}, used in {users}"
    where = source_info_util.summarize(value.origin.source_info)
    return f"{what}, made in {made_in} by {value.origin.primitive.name} at {where}, used in {users}"
