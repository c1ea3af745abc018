"""Moving pages out of a granule's KV memory, and into another one's."""

from fjx.kernels.kv_pages.api import new_pages, put_pages, take_pages

__all__ = ["new_pages", "put_pages", "take_pages"]
