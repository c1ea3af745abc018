"""What a request may ask of the sampler. Names and meanings follow vLLM and the OpenAI API."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from fjx.errors import RequestError

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 300
MAX_BAD_WORDS = 256
MAX_STOP_IDS = 1024
MAX_STOPS = 64
MAX_STOP_LENGTH = 1024
"""Each new token is looked at with all stop strings, while no other request goes on."""
LARGEST_BIAS = 1e30
"""With the smallest temperature above 0, a biased logit still is a number in float32."""
COLDEST = 1e-6
"""Temperatures below it count as 0: they would choose the same tokens, and overflow in float32."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, and when a request ends.

    A request's tokens depend on the model, the prompt, these parameters and the seed, and on
    nothing else. Without a seed the engine draws one.

    Raises:
        RequestError: a value is outside its range; the message names the field and the range.
    """

    n: int = 1
    """Completions per prompt. Completion i uses ``seed + i``."""
    max_tokens: int | None = 16
    """Most tokens to generate; None means up to the model's context, 0 that the prompt is only
    computed (for ``prompt_logprobs``)."""
    min_tokens: int = 0
    """Tokens to generate before an end-of-sequence or stop token may be chosen."""
    temperature: float = 1.0
    """0 is greedy: the most likely token, no noise; so is what is below 1e-6."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 or -1 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability reaches top_p."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the most likely one."""
    repetition_penalty: float = 1.0
    """Divide positive and multiply negative logits of tokens in the prompt or output."""
    presence_penalty: float = 0.0
    """Subtract once from logits of tokens in the output."""
    frequency_penalty: float = 0.0
    """Subtract from logits of tokens in the output, times their count."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    """Token id to a value added to its logit."""
    allowed_token_ids: tuple[int, ...] | None = None
    """Only these tokens may be chosen; by default all may."""
    bad_words: tuple[str, ...] = ()
    """Texts that the output must not hold: the last token of one is not chosen after the others."""
    seed: int | None = None
    """Fixes the noise; equal seeds give equal tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the request, besides the model's own end-of-sequence tokens."""
    include_stop_str_in_output: bool = False
    """Keep the stop string at the end of the text."""
    ignore_eos: bool = False
    """Go on after the model's end-of-sequence tokens."""
    logprobs: int | None = None
    """Log-probabilities of the chosen token and of so many most likely ones; by default none."""
    prompt_logprobs: int | None = None
    """The same as logprobs for the prompt's tokens, all of which are computed then, cached or
    not."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    max_draft_tokens: int | None = None
    """Longest draft for this request; 0: no speculation, None: as the engine decides. It changes
    how fast tokens come, not which."""

    def __post_init__(self) -> None:
        self._take_types()
        self._check_ranges()

    def _check(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            given = reprlib.repr(getattr(self, name))  # the beginning of what may be long
            raise RequestError(f"{name} must be {expected}, got {given}")

    def _take_types(self) -> None:
        """Check what the values are, and keep numbers, tuples and a dictionary of our own."""
        check = self._check

        def keep(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name in _WHOLE_NUMBERS:
            value = getattr(self, name)
            check(_is(Integral, value) or _is_absent(name, value), name, "a whole number")
            keep(name, None if value is None else int(value))
        for name in _NUMBERS:
            check(_is(Real, getattr(self, name)), name, "a number")
        for name in _FLAGS:
            check(_is_flag(getattr(self, name)), name, "true or false")
            keep(name, bool(getattr(self, name)))
        for name in ("stop", "bad_words"):
            texts = _as_tuple(getattr(self, name))
            check(texts is not None and all(isinstance(s, str) for s in texts), name, "strings")
            keep(name, texts)
        for name in ("stop_token_ids", "allowed_token_ids"):
            if _is_absent(name, getattr(self, name)):
                continue
            ids = _as_tuple(getattr(self, name))
            check(ids is not None and all(_is(Integral, i) for i in ids), name, "token ids")
            keep(name, tuple(map(int, ids or ())))
        biases = {} if self.logit_bias is None else self.logit_bias
        check(
            isinstance(biases, Mapping)
            and all(_is(Integral, token) and _is(Real, bias) for token, bias in biases.items()),
            "logit_bias",
            "numbers by token id",
        )
        keep("logit_bias", {int(token): bias for token, bias in biases.items()})

    def _check_ranges(self) -> None:
        check = self._check
        check(self.n >= 1, "n", "at least 1")
        check(self.max_tokens is None or self.max_tokens >= 0, "max_tokens", "at least 0")
        check(self.min_tokens >= 0, "min_tokens", "at least 0")
        check(
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            "min_tokens",
            "at most max_tokens",
        )
        check(0.0 <= self.temperature <= 100.0, "temperature", "in [0, 100]")
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)
        check(self.top_k >= -1, "top_k", "0 or -1 (all), or at least 1")
        check(0.0 < self.top_p <= 1.0, "top_p", "in (0, 1]")
        check(0.0 <= self.min_p <= 1.0, "min_p", "in [0, 1]")
        check(0.01 <= self.repetition_penalty <= 100.0, "repetition_penalty", "in [0.01, 100]")
        check(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", "in [-2, 2]")
        check(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", "in [-2, 2]")
        for name in ("logprobs", "prompt_logprobs"):
            k = getattr(self, name)
            check(k is None or 0 <= k <= MAX_LOGPROBS, name, f"in [0, {MAX_LOGPROBS}]")
        check(
            len(self.logit_bias) <= MAX_LOGIT_BIAS,
            "logit_bias",
            f"at most {MAX_LOGIT_BIAS} entries",
        )
        check(
            all(abs(bias) <= LARGEST_BIAS for bias in self.logit_bias.values()),
            "logit_bias",
            f"values in [-{LARGEST_BIAS:g}, {LARGEST_BIAS:g}]",
        )
        check(
            self.max_draft_tokens is None or self.max_draft_tokens >= 0,
            "max_draft_tokens",
            "at least 0",
        )
        check(len(self.stop) <= MAX_STOPS, "stop", f"at most {MAX_STOPS} strings")
        check(all(self.stop), "stop", "non-empty strings")
        check(
            all(len(s) <= MAX_STOP_LENGTH for s in self.stop),
            "stop",
            f"strings of at most {MAX_STOP_LENGTH} characters",
        )
        check(
            len(self.stop_token_ids) <= MAX_STOP_IDS,
            "stop_token_ids",
            f"at most {MAX_STOP_IDS} token ids",
        )
        check(self.allowed_token_ids != (), "allowed_token_ids", "at least one token id")
        check(
            len(self.bad_words) <= MAX_BAD_WORDS and all(word.strip() for word in self.bad_words),
            "bad_words",
            f"at most {MAX_BAD_WORDS} strings of more than white space",
        )

    @property
    def edits_logits(self) -> bool:
        """Whether penalties, bias, a mask or a minimum length change logits before temperature."""
        return bool(
            self.repetition_penalty != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.masks
        )

    @property
    def masks(self) -> bool:
        """Whether some tokens may not be chosen at some positions."""
        return bool(self.min_tokens or self.bad_words or self.allowed_token_ids is not None)


_WHOLE_NUMBERS = (
    *("n", "max_tokens", "min_tokens", "top_k", "seed", "logprobs", "prompt_logprobs"),
    "max_draft_tokens",
)
_NUMBERS = (
    *("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"),
    "frequency_penalty",
)
_FLAGS = ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens")
_MAY_BE_NONE = (
    *("max_tokens", "seed", "logprobs", "prompt_logprobs", "max_draft_tokens"),
    "allowed_token_ids",
)


def _is(kind: type, value: object) -> bool:
    # What JSON brings is told fast: there may be as many token ids as there are tokens.
    return type(value) is int or (isinstance(value, kind) and not isinstance(value, bool))


def _is_absent(name: str, value: object) -> bool:
    return value is None and name in _MAY_BE_NONE


def _as_tuple(values: object) -> tuple[Any, ...] | None:
    """The entries of a list, or of whatever stands for one; None: it is none."""
    if values is None:
        return ()
    if isinstance(values, str):
        return (values,)
    if isinstance(values, bytes | bytearray) or not isinstance(values, Iterable):
        return None
    try:
        return tuple(values)
    except TypeError:  # an array without dimensions calls itself iterable
        return None


def _is_flag(value: object) -> bool:
    # NumPy's kind of bool is none of Python's. Who has one has imported NumPy; --help has not, and
    # would wait a tenth of a second for it.
    numpy: Any = sys.modules.get("numpy")
    return isinstance(value, bool) or (numpy is not None and isinstance(value, numpy.bool_))
