"""The engine in this process, for commands that load a model and end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING

from fjx.config import EngineConfig

if TYPE_CHECKING:
    from fjx import LLM


@contextmanager
def open_llm(config: EngineConfig) -> Iterator[LLM]:
    """Load a model, and shut the engine down at the end.

    Raises:
        UserError: the model cannot be loaded.
    """
    from fjx import LLM

    llm = LLM(**{field.name: getattr(config, field.name) for field in fields(config)})
    try:
        yield llm
    finally:
        llm.shutdown()
