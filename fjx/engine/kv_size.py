"""How much KV memory an engine has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fjx.config import UNKNOWN_KV_GIB, EngineConfig
from fjx.kernels.attention import kv_storage_dtype
from fjx.models.config import ModelConfig
from fjx.models.tensors import canonical_tensors
from fjx.pipeline.free_memory import free_device_bytes

_LEAST_BYTES = 256 << 20
"""The smallest default, however little is free: pages that are never used take no memory."""
_HOST_PARTS, _DEVICE_PARTS = 4, 2
"""By default KV memory is the free memory divided by this, on a host and on a device."""


def kv_token_bytes(model: ModelConfig, dtype: jnp.dtype) -> int:
    """KV memory of one token in all layers, in bytes."""
    stored = jnp.dtype(kv_storage_dtype(dtype)).itemsize
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * stored


def default_kv_bytes(free: int | None, parameters: int, parts: int, one_context: int) -> int:
    """KV memory by default, in bytes.

    Args:
        free: memory that is free before the parameters are loaded; None: unknown.
        parameters: what they take.
        parts: what is free beside the parameters is divided by this.
        one_context: what the longest request needs; it gets up to half of the rest.
    """
    if free is None:
        return int(UNKNOWN_KV_GIB * 2**30)
    rest = max(free - parameters, 0)
    return max(rest // parts, min(one_context, rest // 2), _LEAST_BYTES)


def kv_slots(config: EngineConfig, model: ModelConfig, dtype: jnp.dtype, context: int) -> int:
    """Token slots of KV memory, before they are cut to what can be used.

    Args:
        config: how it serves.
        model: what it serves.
        dtype: in which.
        context: tokens of the longest request.
    """
    each = kv_token_bytes(model, dtype)
    if config.kv_cache_tokens is not None:
        return config.kv_cache_tokens
    if config.kv_cache_memory is not None:
        return int(config.kv_cache_memory * 2**30) // each
    parameters = _parameter_bytes(model, dtype)
    devices = jax.local_devices()
    free = None if config.cluster is not None else _free_bytes(devices, parameters)
    parts = _HOST_PARTS if devices[0].platform == "cpu" else _DEVICE_PARTS
    return default_kv_bytes(free, parameters, parts, each * (context + config.page_size)) // each


def _free_bytes(devices: Sequence[jax.Device], parameters: int) -> int | None:
    """What is free on the first device, or on all of them if the parameters do not fit there."""
    first = free_device_bytes(devices[0])
    if first is None or first > parameters or devices[0].platform == "cpu":
        return first
    return sum(free_device_bytes(device) or 0 for device in devices)


def _parameter_bytes(model: ModelConfig, dtype: jnp.dtype) -> int:
    stored = [spec.struct(dtype) for spec in canonical_tensors(model).values()]
    return sum(math.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(stored))
