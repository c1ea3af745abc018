"""What a model is: every size and switch that its programs need, whatever file it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fjx.errors import ModelError
from fjx.kernels.matmul import Quantization

Activation = Literal["silu", "gelu_tanh", "relu"]
MAX_LAYERS, MAX_HEAD_DIM = 4096, 8192
"""Far beyond any model; readers of files loop over both before they see a tensor."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of one model.

    Raises:
        ModelError: the sizes contradict each other.
    """

    family: str
    """Name in `fjx.models.registry`."""
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    max_positions: int
    """Longest context that the model was trained for, in tokens."""
    norm_eps: float
    tied_embeddings: bool
    """The head's matrix is the transposed token embedding."""
    attention_scale: float
    """Factor on the attention logits."""
    activation: Activation = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMS norm over each query and key head."""
    embed_scale: float = 1.0
    """Factor on the token embeddings."""
    rope_tables: tuple[tuple[float, ...], ...] = ()
    """Frequencies of each distinct RoPE table; none where positions are learned."""
    rope_of_layer: tuple[int, ...] = ()
    """Index into `rope_tables` of each layer; empty: all layers use the first."""
    window_of_layer: tuple[int, ...] = ()
    """Last positions that each layer sees, 0 for all; empty: all layers see everything."""
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    quantization: Quantization | None = None
    """How the blocks' matrices become eight bits wide while they are loaded; no file says it."""
    tensor: int = 1
    """Tensor-parallel degree. Where it is not 1, heads, MLP width and vocabulary are those of one
    device; see `shard`."""

    def __post_init__(self) -> None:
        def check(ok: bool, message: str) -> None:
            if not ok:
                raise ModelError(f"the {self.family} model's configuration is broken: {message}")

        for field in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads"):
            check(getattr(self, field) > 0, f"{field} is {getattr(self, field)}")
        for field in ("head_dim", "mlp_width", "max_positions"):
            check(getattr(self, field) > 0, f"{field} is {getattr(self, field)}")
        check(self.num_layers <= MAX_LAYERS, f"num_layers is {self.num_layers}")
        check(
            self.num_heads % self.num_kv_heads == 0,
            f"{self.num_heads} query heads are not a multiple of {self.num_kv_heads} KV heads",
        )
        check(
            all(2 * len(table) == self.head_dim for table in self.rope_tables),
            f"a RoPE table does not have {self.head_dim} / 2 frequencies",
        )
        for field in ("rope_of_layer", "window_of_layer"):
            length = len(getattr(self, field))
            check(length in (0, self.num_layers), f"{field} has {length} of {self.num_layers}")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a parsed Hugging Face config.json.

        Raises:
            ModelError: the architecture is unknown, or a value is missing, malformed or
                unsupported.
        """
        from fjx.models import registry  # the families themselves import this module

        return registry.config_from_hf(config)

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        tensor_names: Collection[str],
        rope_factors: Sequence[float] | None = None,
    ) -> ModelConfig:
        """Read a GGUF file's key/values.

        Args:
            metadata: the keys with their values as Python or NumPy values.
            tensor_names: the names of all tensors in the file.
            rope_factors: contents of the tensor ``rope_freqs.weight``, by which Llama 3 files
                say how each RoPE frequency is divided.

        Raises:
            ModelError: the architecture is unknown, or a value is missing, malformed or
                unsupported.
        """
        from fjx.models import registry  # the families themselves import this module

        return registry.config_from_gguf(metadata, tensor_names, rope_factors)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Read back `as_dict`, also after a trip through JSON.

        Raises:
            ModelError: a field is missing or unknown.
        """
        try:
            return cls(**{name: _tuples(value) for name, value in values.items()})
        except TypeError as error:
            raise ModelError(f"not a model configuration of this version: {error}") from None

    def as_dict(self) -> dict[str, Any]:
        """All fields that describe a file's model, as values that JSON can hold."""
        values = dataclasses.asdict(self)
        del values["quantization"], values["tensor"]
        return values

    @property
    def split_sizes(self) -> dict[str, int]:
        """The sizes that tensor parallelism divides, by what they are."""
        return {
            "query heads": self.num_heads,
            "KV heads": self.num_kv_heads,
            "MLP width": self.mlp_width,
            "vocabulary": self.vocab_size,
        }

    def shard(self, degree: int) -> ModelConfig:
        """What one of ``degree`` devices holds of every layer; `split_sizes` are multiples of it.

        Modules built from it run inside `jax.shard_map` with the axis ``tensor``.
        """
        return dataclasses.replace(
            self,
            num_heads=self.num_heads // degree,
            num_kv_heads=self.num_kv_heads // degree,
            mlp_width=self.mlp_width // degree,
            vocab_size=self.vocab_size // degree,
            tensor=degree,
        )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
