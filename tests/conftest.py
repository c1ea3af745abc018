"""Every test sees eight virtual CPU devices; what names none runs on the first."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_num_cpu_devices", 8)

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """A program that a test, here, in another worker or in another run, compiled before is read
    from pytest's cache."""
    if config.pluginmanager.has_plugin("cacheprovider"):
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("programs")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


_MAPPINGS = Path("/proc/self/maps")
_MANY_MAPPINGS = 20_000
"""Of memory. Linux allows a process 65,530, and ends it beyond; a compiled program takes seven."""


@pytest.fixture(scope="module", autouse=True)
def _programs_go() -> Iterator[None]:
    """Modules share engines and programs for as long as there are not too many of them."""
    yield
    if not _MAPPINGS.exists() or _MAPPINGS.read_bytes().count(b"\n") < _MANY_MAPPINGS:
        return
    for name, module in list(sys.modules.items()):
        if name.startswith("tests."):
            for value in list(vars(module).values()):
                getattr(value, "cache_clear", lambda: None)()
    jax.clear_caches()
    gc.unfreeze()  # engines freeze what is there when they have compiled
    gc.collect()
