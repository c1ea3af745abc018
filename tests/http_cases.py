"""Requests that must neither end nor hang a server: (name, method, path, JSON body, statuses).

Each must be answered with one of the statuses, and a plain completion after it with a 200.
"""

from __future__ import annotations

from typing import Any

Case = tuple[str, str, str, dict[str, Any] | None, set[int]]

COMPLETIONS, CHATS, PLAN = "/v1/completions", "/v1/chat/completions", "/v1/plan"
USER = [{"role": "user", "content": "hi"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT: dict[str, Any] = {"messages": USER, "max_tokens": 4}
TEXT: dict[str, Any] = {"prompt": "a", "max_tokens": 2}
BIASED = TEXT | {"top_p": 0.9, "logit_bias": {"60": 1e39}}
COLD = TEXT | {"top_p": 0.5, "temperature": 0.1, "logit_bias": {"60": 3e38}}
SERVED_OR_REFUSED = {200, 400}

NUMBERS: list[Case] = [
    ("top_k beyond int32", "POST", COMPLETIONS, TEXT | {"top_k": 2**31}, SERVED_OR_REFUSED),
    ("top_k beyond int64", "POST", COMPLETIONS, TEXT | {"top_k": 2**63}, SERVED_OR_REFUSED),
    ("top_k of 10^12", "POST", COMPLETIONS, TEXT | {"top_k": 10**12}, SERVED_OR_REFUSED),
    ("top_p is 0 in float32", "POST", COMPLETIONS, TEXT | {"top_p": 1e-300}, SERVED_OR_REFUSED),
    ("top_p is subnormal", "POST", COMPLETIONS, TEXT | {"top_p": 1e-40}, SERVED_OR_REFUSED),
    ("bias is infinite in float32", "POST", COMPLETIONS, BIASED, {400}),
    ("bias overflows at a low temperature", "POST", COMPLETIONS, COLD, SERVED_OR_REFUSED),
    (
        "penalty is 0 in float32",
        "POST",
        COMPLETIONS,
        TEXT | {"top_p": 0.9, "repetition_penalty": 1e-300},
        {400},
    ),
    ("temperature beyond", "POST", COMPLETIONS, TEXT | {"temperature": 1e300}, {400}),
    ("min_p beyond", "POST", COMPLETIONS, TEXT | {"min_p": 1e-320}, SERVED_OR_REFUSED),
    ("seed beyond", "POST", COMPLETIONS, TEXT | {"seed": 2**64}, {400}),
    ("min_tokens beyond", "POST", COMPLETIONS, TEXT | {"min_tokens": 2**62}, {400}),
    ("priority beyond int32", "POST", COMPLETIONS, TEXT | {"priority": 2**40}, SERVED_OR_REFUSED),
    ("priority beyond int64", "POST", COMPLETIONS, TEXT | {"priority": -(2**70)}, {400}),
    ("stop token beyond", "POST", COMPLETIONS, TEXT | {"stop_token_ids": [2**62]}, {200, 400}),
]
"""Where the device's types end."""

FIELDS: list[Case] = [
    (
        "bias key of 5,000 digits",
        "POST",
        COMPLETIONS,
        TEXT | {"logit_bias": {"9" * 5000: 1}},
        {400},
    ),
    ("number of 4,000 digits", "POST", COMPLETIONS, TEXT | {"max_tokens": 10**4000}, {400}),
    (
        "template argument named self",
        "POST",
        CHATS,
        CHAT | {"chat_template_kwargs": {"self": 1}},
        {400},
    ),
    ("mesh name of 5,000 characters", "POST", PLAN, {"mesh": "a" * 5000}, {400}),
    ("mesh path of 5,000 characters", "POST", PLAN, {"mesh": "a" * 5000 + ".toml"}, {400}),
    ("mesh folder of 5,000 characters", "POST", PLAN, {"mesh": "a/" * 2500 + "b"}, {400}),
    ("mesh name with a null", "POST", PLAN, {"mesh": "a\0.toml"}, {400}),
    ("mesh name that is no text", "POST", PLAN, {"mesh": "\ud800.toml"}, {400}),
    ("stages of 4,000 digits", "POST", PLAN, {"stages": 10**4000}, {400}),
    (
        "constraints of other servers",
        "POST",
        CHATS,
        CHAT | {"json_schema": "{}", "regex": "[0-9]", "grammar": 'root ::= "1"'},
        {400},
    ),
    ("misspelt field", "POST", COMPLETIONS, TEXT | {"temperatur": 0}, {400}),
    ("mirostat and typical_p", "POST", CHATS, CHAT | {"mirostat": 2, "typical_p": 0.5}, {400}),
    ("return_token_ids", "POST", COMPLETIONS, TEXT | {"return_token_ids": True}, {200}),
    (
        "tokenize without the generation prompt",
        "POST",
        "/tokenize",
        {"messages": USER, "add_generation_prompt": False},
        {200},
    ),
    (
        "usage in every chunk",
        "POST",
        CHATS,
        CHAT
        | {
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
        {200},
    ),
    (
        "echo with logprobs",
        "POST",
        COMPLETIONS,
        {"prompt": [50, 42, 28, 46, 31], "max_tokens": 0, "logprobs": 1, "echo": True},
        {200},
    ),
    (
        "prefilled answer",
        "POST",
        CHATS,
        {
            "messages": [*USER, {"role": "assistant", "content": "One,"}],
            "max_tokens": 4,
            "add_generation_prompt": False,
            "continue_final_message": True,
        },
        {200},
    ),
    (
        "tool message in the history",
        "POST",
        CHATS,
        {
            "messages": [
                *USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "1", "content": "3"},
            ],
            "max_tokens": 4,
        },
        {200},
    ),
    ("HEAD of health", "HEAD", "/health", None, {200}),
    ("text that is no Unicode", "POST", COMPLETIONS, TEXT | {"prompt": "\ud800"}, {400}),
    ("stop that is no Unicode", "POST", COMPLETIONS, TEXT | {"stop": "\ud800"}, {400}),
    ("salt that is no Unicode", "POST", COMPLETIONS, TEXT | {"cache_salt": "\ud800"}, {400}),
    ("word that is no Unicode", "POST", COMPLETIONS, TEXT | {"bad_words": ["\ud800"]}, {400}),
    ("model that is no Unicode", "POST", COMPLETIONS, TEXT | {"model": "\ud800"}, {400}),
    ("name that is no Unicode", "POST", COMPLETIONS, TEXT | {"\ud800": 1}, {400}),
    (
        "message that is no Unicode",
        "POST",
        CHATS,
        CHAT | {"messages": [{"role": "user", "content": "\ud800"}]},
        {400},
    ),
    (
        "role that is no Unicode",
        "POST",
        CHATS,
        CHAT | {"messages": [{"role": "\ud800", "content": "hi"}]},
        {400},
    ),
]
"""What an engine need not be real for."""
