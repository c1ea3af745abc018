"""Text of a request as it grows, and the stop strings that end it."""

from __future__ import annotations

from fjx.models.tokenizer import Tokenizer
from fjx.sampling_params import SamplingParams


class RequestText:
    """Decodes tokens as they come and holds back what might become a stop string."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._stream = tokenizer.stream(params.skip_special_tokens, continuation=True)
        self._stops = params.stop
        self._keep_stop = params.include_stop_str_in_output
        self._held = ""
        self.stopped_by: str | None = None

    def add(self, token_ids: list[int], may_stop: bool = True) -> str:
        """Take new tokens and return the text that is now certain; sets ``stopped_by`` at a stop
        string."""
        new = self._stream.add(token_ids)
        return self._release(new, final=False) if may_stop else new

    def finish(self) -> str:
        """Return the rest of the text; no tokens follow."""
        if self.stopped_by is not None:
            return ""
        return self._release(self._stream.flush(), final=True)

    def _release(self, new: str, final: bool) -> str:
        if not self._stops:
            return new
        text = self._held + new
        found = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if found:
            at, stop = min(found, key=lambda f: (f[0], -len(f[1])))
            self.stopped_by, self._held = stop, ""
            return text[: at + len(stop)] if self._keep_stop else text[:at]
        held = 0 if final else _longest_overlap(text, self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _longest_overlap(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of ``text`` that begins a stop string."""
    longest = min(len(text), max(len(stop) for stop in stops) - 1)
    for length in range(longest, 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
