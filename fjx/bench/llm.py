"""The engine in this process, for commands that load a model and end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING

from fjx.config import EngineConfig
from fjx.errors import UserError

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


def read_sizes(config: EngineConfig) -> tuple[int, int]:
    """The longest context that a model can be served with, in tokens, and the number of its token
    ids, from its configuration alone.

    Raises:
        UserError: something that the configuration names is not there, or cannot be read.
    """
    from fjx.engine.names import check_names

    check_names(config)

    from fjx.models.loading.load import load_model_config
    from fjx.models.loading.source import resolve_config

    model = load_model_config(resolve_config(config.model, config.revision, config.cache_dir))
    return min(config.max_model_len or model.max_positions, model.max_positions), model.vocab_size


def check_fits(config: EngineConfig, tokens: int, what: str) -> None:
    """Check, before a model is loaded, that so many tokens fit into its context.

    Args:
        config: of the engine.
        tokens: of a prompt and its output.
        what: the options that ask for them.

    Raises:
        UserError: they do not, or see `read_sizes`.
    """
    context, _ = read_sizes(config)
    if tokens > context:
        raise UserError(f"{what} ask for {tokens} tokens, but the context holds {context}")
