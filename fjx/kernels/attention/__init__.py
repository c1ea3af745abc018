"""Ragged paged attention: one function, a reference, and faster implementations of the same."""

from fjx.kernels.attention.api import append_and_attend, kv_pages_shape, kv_storage_dtype
from fjx.kernels.attention.rotation import Rotation

__all__ = ["Rotation", "append_and_attend", "kv_pages_shape", "kv_storage_dtype"]
