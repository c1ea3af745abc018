"""Which fields belong to which endpoint: a field at the wrong one is told where it belongs."""

from __future__ import annotations

from fjx.serving.errors import invalid
from fjx.serving.fields import OTHER_NAMES, check_fields
from fjx.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    TokenizeRequest,
)

_ENDPOINTS: dict[str, type[GenerationRequest | TokenizeRequest | DetokenizeRequest]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}


def check_own_fields(request: GenerationRequest | TokenizeRequest | DetokenizeRequest) -> None:
    """Raise a 400 for the first field that this endpoint neither serves nor may ignore."""
    own = type(request).model_fields
    here = next(path for path, kind in _ENDPOINTS.items() if kind is type(request))
    for name in request.model_extra or {}:
        homes = [path for path, kind in _ENDPOINTS.items() if name in kind.model_fields]
        if homes:
            other = OTHER_NAMES.get(name)
            hint = f", which has {other!r}" if other in own else ""
            raise invalid(
                f"{name!r} is a field of {' and '.join(homes)}, not of {here}{hint}",
                name,
                "unknown_parameter",
            )
    check_fields(request.model_extra, own)
