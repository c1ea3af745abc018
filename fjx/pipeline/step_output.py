"""What a step brings from the devices to the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


class StepOutput:
    """What a step will bring; reading waits for the device."""

    def __init__(
        self,
        tokens: Any,
        num_samples: int,
        logprobs: Any = None,
        confidences: Any = None,
        stream: Any = None,
        wait: Callable[[], None] | None = None,
    ) -> None:
        """``wait``: returns when the arrays are there, or raises `StageLostError`."""
        self.tokens = tokens
        """The chosen tokens on the device, padded; None: the step chooses none."""
        self.stream = stream
        """The residual stream of all rows on the device, see `Limits.hidden`."""
        self._logprobs = logprobs
        self._confidences = confidences
        self._num_samples = num_samples
        self._wait = wait
        if jax.default_backend() != "cpu":
            for array in jax.tree.leaves((tokens, logprobs, confidences)):
                array.copy_to_host_async()

    def read_tokens(self) -> list[int]:
        """The chosen tokens, in the order of the batch's samples.

        Raises:
            StageLostError: a stage in another process is lost, and they with it.
        """
        if self.tokens is None:
            return []
        if self._wait is not None:
            self._wait()
        tokens: list[int] = np.asarray(self.tokens)[: self._num_samples].tolist()
        return tokens

    def read_confidences(self) -> list[float]:
        """The probability of each chosen token, where `Limits.confidences` asks for it."""
        if self._confidences is None:
            return []
        confidences: list[float] = np.asarray(self._confidences)[: self._num_samples].tolist()
        return confidences

    def read_logprobs(self) -> tuple[np.ndarray, ...]:
        """Log-probability and rank of each token, values and ids of the best; see
        `top_logprobs`."""
        read = tuple(np.asarray(values) for values in self._logprobs)
        self._logprobs = read
        return read
