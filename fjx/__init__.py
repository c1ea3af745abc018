"""fjx: a serving engine for large language models in JAX."""

from typing import TYPE_CHECKING, Any

from fjx.config import EngineConfig
from fjx.errors import (
    EngineDeadError,
    MeshError,
    ModelError,
    QueueFullError,
    RegranularizationBusyError,
    RegranularizationError,
    RequestError,
    UserError,
)
from fjx.outputs import (
    CompletionOutput,
    EngineStats,
    HeldMemory,
    PlanStats,
    PlanStatus,
    PositionLogprobs,
    RequestOutput,
    RequestTiming,
    SpeculationStats,
    SwitchRecord,
    TokenLogprob,
)
from fjx.sampling_params import SamplingParams

if TYPE_CHECKING:
    from fjx.async_llm import AsyncLLM
    from fjx.llm import LLM

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "EngineConfig",
    "EngineDeadError",
    "EngineStats",
    "HeldMemory",
    "MeshError",
    "ModelError",
    "PlanStats",
    "PlanStatus",
    "PositionLogprobs",
    "QueueFullError",
    "RegranularizationBusyError",
    "RegranularizationError",
    "RequestError",
    "RequestOutput",
    "RequestTiming",
    "SamplingParams",
    "SpeculationStats",
    "SwitchRecord",
    "TokenLogprob",
    "UserError",
]


def __getattr__(name: str) -> Any:
    # JAX takes a second to import: only who runs a model pays for it.
    if name == "LLM":
        from fjx.llm import LLM

        return LLM
    if name == "AsyncLLM":
        from fjx.async_llm import AsyncLLM

        return AsyncLLM
    raise AttributeError(f"module 'fjx' has no attribute {name!r}")
