"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from fastapi import APIRouter

from fjx.serving.errors import invalid
from fjx.serving.logprobs import token_name
from fjx.serving.params import refuse_unsupported_message
from fjx.serving.prompts import check_token_ids, encode_chat, off_loop
from fjx.serving.protocol import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from fjx.serving.state import ServerState


def token_routes(state: ServerState) -> APIRouter:
    """The routes, bound to an engine."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        """Encode a prompt or a conversation as a completion request would."""
        state.check_serving()
        state.check_model(body.model)
        tokenizer = state.llm.tokenizer
        ids = await _encode(state, body)
        return TokenizeResponse(
            count=len(ids),
            max_model_len=state.llm.max_model_len,
            tokens=ids,
            token_strs=[token_name(tokenizer, token) for token in ids]
            if body.return_token_strs
            else None,
        )

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
    tokenizer = state.llm.tokenizer
    if body.messages is not None:
        for position, message in enumerate(body.messages):
            refuse_unsupported_message(message, f"messages[{position}]")
        return await encode_chat(
            tokenizer, body.messages, body.chat_template_kwargs, bool(body.add_special_tokens)
        )
    prompt = body.prompt
    if prompt is None:
        raise invalid("either prompt or messages is required", "prompt")
    add_special_tokens = body.add_special_tokens is not False
    return await off_loop(len(prompt), lambda: tokenizer.encode(prompt, add_special_tokens))
