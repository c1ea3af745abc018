"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from fastapi import APIRouter, Response

from fjx.serving.errors import invalid
from fjx.serving.logprobs import token_name
from fjx.serving.params import refuse_unsupported_message
from fjx.serving.prompts import check_token_ids, encode_chat, encode_text
from fjx.serving.protocol import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from fjx.serving.state import ServerState
from fjx.serving.workers import off_loop


def token_routes(state: ServerState) -> APIRouter:
    """The routes, bound to an engine."""
    router = APIRouter()

    @router.post("/tokenize", response_model=TokenizeResponse)
    async def tokenize(body: TokenizeRequest) -> Response:
        """Encode a prompt or a conversation as a completion request would."""
        state.check_serving()
        state.check_model(body.model)
        tokenizer = state.llm.tokenizer
        ids = await _encode(state, body)

        def answer() -> str:
            named = body.return_token_strs
            return TokenizeResponse(
                count=len(ids),
                max_model_len=state.llm.max_model_len,
                tokens=ids,
                token_strs=[token_name(tokenizer, token) for token in ids] if named else None,
            ).model_dump_json()

        return Response(await off_loop(len(ids), answer), media_type="application/json")

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        """Decode token ids, special tokens included."""
        state.check_serving()
        state.check_model(body.model)
        check_token_ids(body.tokens, state.llm.vocab_size, "tokens")
        tokenizer = state.llm.tokenizer
        text = await off_loop(len(body.tokens), lambda: tokenizer.decode(body.tokens, False))
        return DetokenizeResponse(prompt=text)

    return router


async def _encode(state: ServerState, body: TokenizeRequest) -> list[int]:
    if body.messages is not None:
        for position, message in enumerate(body.messages):
            refuse_unsupported_message(message, f"messages[{position}]")
        return await encode_chat(
            state, body.messages, body.chat_template_kwargs, bool(body.add_special_tokens)
        )
    prompt = body.prompt
    if prompt is None:
        raise invalid("either prompt or messages is required", "prompt")
    add_special_tokens = body.add_special_tokens is not False
    return await off_loop(
        len(prompt), lambda: encode_text(state, prompt, "prompt", add_special_tokens)
    )
