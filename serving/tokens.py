"""POST /tokenize and /detokenize and GET /tokenizer_info, in vLLM's shapes."""

from __future__ import annotations

from functools import cache, partial

from fastapi import APIRouter, Response

from fjx.serving.bodies import BodyRoute
from fjx.serving.conversation import conversation_of
from fjx.serving.endpoints import check_own_fields
from fjx.serving.errors import invalid
from fjx.serving.logprobs import token_name
from fjx.serving.openapi import errors
from fjx.serving.prompts import check_token_ids, encode_chat, encode_text
from fjx.serving.protocol import DetokenizeRequest, TokenizeRequest
from fjx.serving.responses import (
    DetokenizeResponse,
    TokenizeResponse,
    TokenizerInfo,
    written,
)
from fjx.serving.state import ServerState
from fjx.serving.workers import ENCODING, off_loop


def token_routes(state: ServerState, prefix: str = "") -> APIRouter:
    """The routes, bound to an engine; clients look for them with and without /v1 before them."""
    router = APIRouter(prefix=prefix, route_class=BodyRoute)

    @router.post(
        "/tokenize", response_model=TokenizeResponse, responses=errors(400, 404, 408, 413, 415)
    )
    async def tokenize(body: TokenizeRequest) -> Response:
        """Encode a prompt or a conversation as a completion request would."""
        state.check_serving()
        state.check_model(body.model)
        check_own_fields(body)
        tokenizer = state.llm.tokenizer
        ids = await _encode(state, body)

        def answer() -> bytes:
            named = body.return_token_strs
            name = cache(partial(token_name, tokenizer))  # the garbage collector visits each text
            # Nothing is checked again: that would be one long call, too.
            return TokenizeResponse.model_construct(
                count=len(ids),
                max_model_len=state.llm.max_model_len,
                tokens=ids,
                token_strs=[name(token) for token in ids] if named else None,
            ).written()

        return Response(await off_loop(len(ids), answer), media_type="application/json")

    @router.post(
        "/detokenize", response_model=DetokenizeResponse, responses=errors(400, 404, 408, 413, 415)
    )
    async def detokenize(body: DetokenizeRequest) -> Response:
        """Decode token ids, special tokens included."""
        state.check_serving()
        state.check_model(body.model)
        check_own_fields(body)

        def answer() -> bytes:
            check_token_ids(body.tokens, state.llm.vocab_size, "tokens")
            text = state.llm.tokenizer.decode(body.tokens, False)
            return written(DetokenizeResponse(prompt=text))

        return Response(await off_loop(len(body.tokens), answer), media_type="application/json")

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> TokenizerInfo:
        """Say what a client needs to make prompts by itself."""
        state.check_serving()
        tokenizer = state.llm.tokenizer

        def text(token: int | None) -> str | None:
            return None if token is None else tokenizer.token_bytes(token).decode(errors="replace")

        return TokenizerInfo(
            tokenizer_class=type(tokenizer).__name__,
            bos_token=text(tokenizer.bos_token_id),
            eos_token=text(next(iter(tokenizer.eos_token_ids), None)),
            chat_template=tokenizer.chat_template,
            model_max_length=state.llm.max_model_len,
        )

    return router


async def _encode(state: ServerState, body: TokenizeRequest) -> list[int]:
    if (messages := body.messages) is not None:
        if body.prompt is not None:
            raise invalid("prompt and messages: give one of them", "prompt")
        tokenizer = state.llm.tokenizer
        template = tokenizer.tool_template if body.tools else tokenizer.chat_template
        return await encode_chat(
            state,
            lambda: conversation_of(body, messages, template, body.tools),
            bool(body.add_special_tokens),
        )
    prompt = body.prompt
    if prompt is None:
        raise invalid("either prompt or messages is required", "prompt")
    add_special_tokens = body.add_special_tokens is not False
    return await off_loop(
        len(prompt),
        lambda: encode_text(state, prompt, "prompt", add_special_tokens),
        workers=ENCODING,
    )
