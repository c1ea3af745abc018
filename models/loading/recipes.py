"""How each canonical tensor is made from the tensors of a file.

Files store matrices as (out, in) and keep q, k, v and gate, up apart; the canonical form is
(in, out) and fused. A `Naming` says what a format calls the parts, `build_recipes` checks them
against the file's header, and `assemble` reads and joins the parts of one canonical tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fjx.errors import ModelError
from fjx.models.config import ModelConfig

PIECE_BYTES = 8 << 20
"""Of a tensor that is read in pieces, at once."""
_FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
_EMBEDDINGS = ("embed.tokens", "embed.positions")
_NORMS = (
    "attn_norm",
    "post_attn_norm",
    "mlp_norm",
    "post_mlp_norm",
    "q_norm",
    "k_norm",
    "head.norm",
)


class TensorStore(Protocol):
    """The tensors of a file or folder."""

    @property
    def path(self) -> Path:
        """The file that says which tensors there are."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, in NumPy's order."""

    def where(self, name: str) -> Path:
        """Return the file that holds tensor `name`."""

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype that `read` gives: float32, float16 or bfloat16."""

    def nbytes(self, name: str) -> int:
        """Return the bytes of tensor `name` in the file."""

    def read(self, name: str) -> np.ndarray:
        """Return tensor `name` as an array of its own."""

    def pieces(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield tensor `name` in runs of rows, each with the number of its first row: no more than
        some MiB of it are held at once."""


@dataclass(frozen=True)
class Naming:
    """What a format calls the tensors of one model."""

    names: Mapping[str, str]
    """From a role ("q", "head.norm") to the tensor of its weight, ``{i}`` standing for the layer.

    The tensor of its bias ends in ".bias" instead of ".weight".
    """
    ignored: tuple[str, ...]
    """Patterns of tensors that inference does not need."""
    interleaved_rope: bool = False
    """The rows of q and k alternate between the halves that RoPE pairs."""
    norm_offset: float = 0.0
    """Added to norm weights."""

    def name_of(self, role: str, layer: int | None) -> str:
        """Return the name of the tensor for `role`, which may end in ``_bias``."""
        weight = self.names[role.removesuffix("_bias")]
        name = weight.removesuffix("weight") + "bias" if role.endswith("_bias") else weight
        return name.replace("{i}", str(layer))


@dataclass(frozen=True)
class FilePart:
    """One tensor of a file and how it enters the canonical tensor."""

    name: str
    shape: tuple[int, ...]
    """Its shape in the file."""
    interleaved_heads: int = 0
    """Its rows are this many heads in interleaved RoPE order; 0: in canonical order."""


@dataclass(frozen=True)
class Recipe:
    """The parts of one canonical tensor, joined along its last axis."""

    shape: tuple[int, ...]
    parts: tuple[FilePart, ...]
    transpose: bool
    offset: float


class RecipeCheckpoint:
    """The canonical tensors of a file or folder, made one after another.

    Raises:
        ModelError: see `build_recipes`; or a tensor has a dtype that is not supported.
    """

    def __init__(
        self,
        store: TensorStore,
        config: ModelConfig,
        shapes: Mapping[str, tuple[int, ...]],
        naming: Naming,
    ) -> None:
        self._store = store
        self._tied = config.tied_embeddings
        self._recipes = build_recipes(config, shapes, naming, store)
        self.nbytes: Mapping[str, int] = {
            name: sum(store.nbytes(part.name) for part in recipe.parts)
            for name, recipe in self._recipes.items()
        }

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        return self.read(lambda name: True)

    def read(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the tensors that are wanted; of the others, nothing is read."""
        for name, recipe in self._recipes.items():
            tied = ("head.unembed",) if name == "embed.tokens" and self._tied else ()
            if not any(map(wanted, (name, *tied))):
                continue
            tensor = assemble(recipe, self._store)
            if wanted(name):
                yield name, tensor
            if any(map(wanted, tied)):
                yield "head.unembed", transposed(tensor)
            del tensor


def build_recipes(
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    naming: Naming,
    store: TensorStore,
) -> dict[str, Recipe]:
    """Return a recipe for every canonical tensor of `shapes`, checked against the store's header.

    A tied ``head.unembed`` has none.

    Raises:
        ModelError: a tensor is missing, has a wrong shape, or is not part of this architecture.
    """
    recipes = {
        name: _recipe(name, shape, config, naming)
        for name, shape in shapes.items()
        if not (name == "head.unembed" and config.tied_embeddings)
    }
    parts = [part for recipe in recipes.values() for part in recipe.parts]
    for part in parts:
        if part.name not in store.shapes:
            raise ModelError(f"{store.path}: tensor {part.name!r} is missing")
        if store.shapes[part.name] != part.shape:
            raise ModelError(
                f"{store.where(part.name)}: tensor {part.name!r} has shape "
                f"{store.shapes[part.name]}, expected {part.shape}"
            )
    ignored = re.compile("|".join(naming.ignored))
    for name in store.shapes.keys() - {part.name for part in parts}:
        if not ignored.fullmatch(name):
            raise ModelError(
                f"{store.where(name)}: tensor {name!r} is not part of a {config.family} model; "
                "this variant of the architecture is not supported"
            )
    return recipes


def assemble(recipe: Recipe, store: TensorStore) -> np.ndarray:
    """Read the parts of one canonical tensor and join them.

    Raises:
        ModelError: a part cannot be read, or holds NaN or infinite values.
    """
    dtypes = {store.dtype(part.name) for part in recipe.parts}
    # Norms are applied in float32; and 1 + w would lose bits in 16.
    dtype = np.dtype(np.float32) if len(dtypes) > 1 or recipe.offset else dtypes.pop()
    out = np.empty(recipe.shape, dtype)
    start = 0
    for part in recipe.parts:
        width = part.shape[0] if recipe.transpose else part.shape[-1]
        target = out[..., start : start + width]
        for first, values in _pieces(part, store):
            check_finite(values, store.where(part.name), part.name)
            rows = slice(first, first + len(values))
            if recipe.transpose:
                transpose_into(target[:, rows], values)
            elif recipe.offset:
                np.add(values, recipe.offset, out=target[rows], dtype=np.float32)
            else:
                target[rows] = values
        start += width
    return out


def _pieces(part: FilePart, store: TensorStore) -> Iterator[tuple[int, np.ndarray]]:
    if part.interleaved_heads:
        yield 0, _half_split(store.read(part.name), part.interleaved_heads)
    else:
        yield from store.pieces(part.name)


def transposed(values: np.ndarray) -> np.ndarray:
    """Return the transpose of a matrix as a new array in C order."""
    out = np.empty(values.shape[::-1], values.dtype)
    transpose_into(out, values)
    return out


def transpose_into(target: np.ndarray, values: np.ndarray) -> None:
    """Write the transpose of `values` into `target`, in strips that stay in the cache."""
    if values.dtype == target.dtype and values.itemsize == 2:  # bfloat16 copies slowly by itself
        values, target = values.view(np.uint16), target.view(np.uint16)
    for row in range(0, len(values), 64):
        target[:, row : row + 64] = values[row : row + 64].T


def check_finite(values: np.ndarray, file: Path, name: str) -> None:
    """Raise ModelError, naming the file and the tensor, where a value is NaN or infinite."""
    if values.itemsize == 2:  # all exponent bits set; isfinite is slow for 16-bit types
        exponent = np.uint16(0x7C00 if values.dtype == np.float16 else 0x7F80)
        broken = ((values.view(np.uint16) & exponent) == exponent).any()
    else:
        broken = not np.isfinite(values).all()
    if broken:
        raise ModelError(f"{file}: tensor {name!r} holds NaN or infinite values")


def one_line(error: Exception) -> str:
    """Return the first line of another library's message."""
    return str(error).strip().partition("\n")[0]


def _recipe(name: str, shape: tuple[int, ...], config: ModelConfig, naming: Naming) -> Recipe:
    layer, role = None, name
    if name.startswith("layers."):
        number, role = name.removeprefix("layers.").split(".")
        layer = int(number)
    weight = role.removesuffix("_bias")
    suffix = role.removeprefix(weight)
    roles = _FUSED.get(weight, (weight,))
    transpose = len(shape) == 2 and name not in _EMBEDDINGS
    heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    parts = []
    for part in roles:
        width = heads[part] * config.head_dim if part in heads else shape[-1] // len(roles)
        in_file = (width, *shape[:-1]) if transpose else (*shape[:-1], width)
        interleaved = naming.interleaved_rope and part in ("q", "k")
        parts.append(
            FilePart(
                naming.name_of(part + suffix, layer),
                in_file,
                heads[part] if interleaved else 0,
            )
        )
    offset = naming.norm_offset if role in _NORMS else 0.0
    return Recipe(shape, tuple(parts), transpose, offset)


def _half_split(values: np.ndarray, heads: int) -> np.ndarray:
    """Bring the rows of each head from llama.cpp's order (0, h, 1, h + 1, ...) to (0, 1, 2, ...).

    h is half the head's size: RoPE rotates rows r and r + h together.
    """
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)
