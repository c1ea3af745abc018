"""Text of a request as it grows, and the stop strings that end it."""

from __future__ import annotations

from fjx.models.tokenizer import Tokenizer
from fjx.outputs import FinishReason
from fjx.sampling_params import SamplingParams
from fjx.scheduling.request import Request


class WholeTokens(dict[int, str | None]):
    """Text of each token that spells whole characters; None: it may hold a part of one."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens

    def __missing__(self, token: int) -> str | None:
        stream = self._tokenizer.stream(self._skip_special_tokens, continuation=True)
        text = stream.add([token])
        whole = not stream.flush() and "\N{REPLACEMENT CHARACTER}" not in text
        self[token] = text if whole else None
        return self[token]


class RequestText:
    """Decodes tokens as they come and holds back what might become a stop string."""

    __slots__ = ("_held", "_inside", "_keep_stop", "_stops", "_stream", "_whole", "stopped_by")

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, whole: WholeTokens | None = None
    ) -> None:
        """``whole`` is shared by the requests that treat special tokens alike."""
        if whole is None:
            whole = WholeTokens(tokenizer, params.skip_special_tokens)
        self._whole = whole
        self._stream = tokenizer.stream(params.skip_special_tokens, continuation=True)
        self._inside = False
        self._stops = params.stop
        self._keep_stop = params.include_stop_str_in_output
        self._held = ""
        self.stopped_by: str | None = None

    def add(self, token_ids: list[int], may_stop: bool = True) -> str:
        """Take new tokens and return the text that is now certain; sets ``stopped_by`` at a stop
        string."""
        new = ""
        for token in token_ids:
            text = None if self._inside else self._whole[token]
            new += self._decode(token) if text is None else text
        return self._release(new, final=False) if self._stops and may_stop else new

    def _decode(self, token: int) -> str:
        """Text of a token where it or the one before holds a part of a character."""
        text = self._whole[token]
        if text != "":
            self._inside = text is None
        return self._stream.add([token])

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


class Detokenizer:
    """Texts of the unfinished requests, and what a new token means for each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._whole_tokens = {skip: WholeTokens(tokenizer, skip) for skip in (False, True)}
        self._texts: dict[Request, RequestText] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def begin(self, request: Request) -> None:
        """Take up a new request."""
        params = request.params
        whole = self._whole_tokens[params.skip_special_tokens]
        self._texts[request] = RequestText(self._tokenizer, params, whole)

    def add(self, request: Request, token: int) -> tuple[str, FinishReason | None]:
        """Take the newest of a request's tokens.

        Returns:
            The text that is now certain, and why the request ends with it; None: it goes on.
        """
        text_of = self._texts[request]
        may_stop = request.num_output >= request.params.min_tokens
        if may_stop and token in request.end_tokens:
            request.stop_reason = token if token in request.params.stop_token_ids else None
            return self.end(request), "stop"
        text = text_of.add([token], may_stop)
        at_end = len(request.tokens) >= request.max_len
        if text_of.stopped_by is None and not at_end:
            return text, None
        text += self.end(request)
        request.stop_reason = text_of.stopped_by
        return text, "length" if text_of.stopped_by is None else "stop"

    def forget(self, request: Request) -> None:
        """Drop the text of a request that has failed."""
        self._texts.pop(request, None)

    def end(self, request: Request) -> str:
        """The rest of a request's text; no tokens follow."""
        return self._texts.pop(request).finish()


def _longest_overlap(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of ``text`` that begins a stop string."""
    longest = min(len(text), max(len(stop) for stop in stops) - 1)
    for length in range(longest, 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
