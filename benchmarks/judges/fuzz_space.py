"""What the fuzz sends: extreme values of every field, every pair of them, and mixtures.

A request is a method's path and a JSON text; a text, because JSON knows numbers that Python's
``json`` does not write (1e400).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

COMPLETIONS, CHATS, TOKENIZE, DETOKENIZE = (
    "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize",
)  # fmt: skip
SEED = 20261201
ABORTED = 0.15
"""Part of the mixtures whose client leaves before the answer is whole."""

_WHOLE = ["-9223372036854775809", "-2147483649", "-1", "0", "1", "2147483647", "2147483648",
          "9223372036854775807", "1000000000000000000000000000000", "0.5", '"1"']  # fmt: skip
_REAL = ["-1", "-0.0", "0", "1e-320", "1e-300", "1e-45", "1e-30", "0.9999999999999999", "1",
         "1.0000001", "2", "3.4e38", "1e39", "1e308", "1e400", "-1e400", "NaN"]  # fmt: skip

NUMBERS: dict[str, list[str]] = {
    "n": ["-1", "0", "1", "3", "128", "129", "2147483648", "9223372036854775808", "1.5"],
    "max_tokens": _WHOLE,
    "min_tokens": _WHOLE,
    "top_k": _WHOLE,
    "seed": _WHOLE,
    "priority": _WHOLE,
    "logprobs": ["-1", "0", "1", "20", "21", "2147483648", "9223372036854775808", "true"],
    "prompt_logprobs": ["-1", "0", "1", "20", "21", "2147483648", "9223372036854775808"],
    "truncate_prompt_tokens": ["-1", "0", "1", "2147483648", "9223372036854775808", "0.5"],
    "temperature": [*_REAL, "1e-7", "0.01", "100", "100.1"],
    "top_p": _REAL,
    "min_p": _REAL,
    "repetition_penalty": [*_REAL, "0.01", "100"],
    "presence_penalty": [*_REAL, "-2", "-2.1"],
    "frequency_penalty": [*_REAL, "-2", "-2.1"],
    "logit_bias": [f'{{"65": {value}}}' for value in (*_REAL, "3.3e38", "-3.4e38", "-100", "1e30")],
    "speculative": [f'{{"max_draft_tokens": {value}}}' for value in _WHOLE],
}
"""JSON texts of each numeric field's extreme values."""

OTHERS: dict[str, list[str]] = {
    "prompt": ['""', '"a"', '"\\u0000"', '"\\ud800"', '"<|im_end|>"', '"' + "x" * 5000 + '"', "[]",
               "[65]", "[-1]", "[99999999999]", "[[65],[66, 67]]", "[[]]", '["a", "b"]', "null",
               "{}", '"' + "\U0001f642" * 40 + '"', "[" + ",".join(["65"] * 300) + "]"],
    "stop": ['""', '"a"', "[]", '["a", "b"]', '["' + "a" * 1000 + '"]', "1", "[1]", "null",
             "[" + ",".join(['"x"'] * 200) + "]"],
    "stop_token_ids": ["[]", "[65]", "[-1]", "[2147483648]", "[9223372036854775808]", '["a"]',
                       "65"],
    "logit_bias": ["{}", '{"-1": 1}', '{"999999": 1}', '{"a": 1}', '{"' + "9" * 5000 + '": 1}',
                   "[]", "{" + ",".join(f'"{id}": -100' for id in range(200)) + "}"],
    "allowed_token_ids": ["[]", "[65]", "[-1]", "[9223372036854775808]", '"a"', "[65, 66]"],
    "bad_words": ["[]", '["a"]', '[""]', '"a"', "[1]", '["' + "a" * 1000 + '"]'],
    "echo": ["true", "false", '"a"'],
    "stream": ["true", "false", "1", '"true"'],
    "stream_options": ["{}", '{"include_usage": true}', '{"continuous_usage_stats": true}', "1"],
    "ignore_eos": ["true", "false", "2"],
    "skip_special_tokens": ["true", "false"],
    "include_stop_str_in_output": ["true", "false"],
    "best_of": ["0", "1", "2147483648"],
    "suffix": ['""', '"a"'],
    "user": ['"somebody"', '"' + "u" * 5000 + '"'],
    "cache_salt": ['"a"', '""', "1"],
    "model": ['"tiny"', '"another"', "1", '"' + "m" * 5000 + '"'],
    "response_format": ['{"type": "text"}', '{"type": "json_object"}', "1"],
    "temperatur": ["0"],
    "chat_template_kwargs": ['{"self": 1}', '{"messages": 1}', "{}", "1"],
}  # fmt: skip
"""JSON texts of the other fields."""

MESSAGES = [
    '[{"role": "user", "content": "hi"}]', "[]", "[{}]", '"hi"', '[{"role": "user"}]',
    '[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]',
    '[{"role": "user", "content": [{"type": "image_url"}]}]', '[{"role": "", "content": ""}]',
    '[{"role": "tool", "content": "1", "tool_call_id": "1"}]', '[{"role": 1, "content": 1}]',
    '[{"role": "user", "content": "' + "x" * 5000 + '"}]',
]  # fmt: skip
_MILD: dict[str, list[str]] = {
    "n": ["1", "2", "5"], "max_tokens": ["0", "1", "4", "24", "200"], "min_tokens": ["0", "1", "4"],
    "top_k": ["-1", "0", "1", "3", "2147483647"], "seed": ["0", "-1", "9223372036854775807"],
    "priority": ["-2147483648", "0", "5"], "prompt_logprobs": ["0", "3"],
    "temperature": ["0", "1e-7", "1e-5", "0.7", "1", "100"],
    "top_p": ["1e-45", "1e-300", "1e-8", "0.5", "0.9999999999999999", "1"],
    "min_p": ["0", "1e-300", "1e-45", "0.5", "1"],
    "repetition_penalty": ["0.01", "0.5", "1", "1.1", "100"],
    "presence_penalty": ["-2", "0", "2"], "frequency_penalty": ["-2", "0", "2"],
    "logit_bias": ['{"65": 1e30}', '{"65": -1e30, "66": 1e30}', '{"65": 1e-300}', '{"258": 100}'],
    "speculative": ['{"max_draft_tokens": 0}', '{"max_draft_tokens": 2147483647}'],
    "stop": ['"a"', '["a", "bc"]'], "stop_token_ids": ["[65, 66]"], "bad_words": ['["a", " b"]'],
    "allowed_token_ids": ["[65]", "[65, 66, 258]", "[258]"], "ignore_eos": ["true", "false"],
    "stream": ["true", "true", "false"], "skip_special_tokens": ["false"],
    "include_stop_str_in_output": ["true"], "cache_salt": ['"one"', '"two"'],
}  # fmt: skip
"""Values that mostly are allowed, so that mixtures of many reach the device."""


@dataclass(frozen=True)
class Shot:
    """One request."""

    path: str
    body: str
    leave: Literal["at once", "after the first event"] | None = None
    """When the client goes away; None: it waits for the whole answer."""


def shots(count: int | None = None, seed: int = SEED) -> list[Shot]:
    """All single values, all pairs of numbers, and a quarter as many mixtures.

    Args:
        count: only so many of them, a sample; None: all.
        seed: of the mixtures, and of the order, in which every stretch holds all kinds.
    """
    rng = random.Random(seed)
    fixed = list(dict.fromkeys([*singles(), *pairs()]))
    made = fixed + [mixture(rng) for _ in range(len(fixed) // 4)]
    rng.shuffle(made)
    return made[:count]


def singles() -> Iterator[Shot]:
    """Every value of every field alone, in both kinds of requests, and broken bodies."""
    for field, values in [*NUMBERS.items(), *OTHERS.items()]:
        for value in [*values, "null", "[]", "{}", "true", '"a"', "[[[]]]"]:
            yield _shot(COMPLETIONS, {field: value})
            yield _shot(CHATS, {field: value})
            yield _shot(TOKENIZE, {field: value})
    for messages in MESSAGES:
        yield _shot(CHATS, {"messages": messages})
        yield Shot(TOKENIZE, f'{{"messages": {messages}}}')
    for tokens in ("[]", "[65]", "[-1]", "[2147483648]", "[9223372036854775808]", '"a"', "1"):
        yield Shot(DETOKENIZE, f'{{"tokens": {tokens}}}')
    for body in (
        "",
        "{",
        "[]",
        "null",
        "1",
        '"a"',
        "{" * 5000,
        "[" * 100_000,
        '{"prompt": "a"' * 2,
    ):
        yield Shot(COMPLETIONS, body)
        yield Shot(CHATS, body)


def pairs() -> Iterator[Shot]:
    """Every pair of extreme values of every two numeric fields."""
    for one, other in combinations(NUMBERS, 2):
        for left, right in product(NUMBERS[one], NUMBERS[other]):
            yield _shot(COMPLETIONS, {one: left, other: right})


def mixture(rng: random.Random) -> Shot:
    """Many fields at once, of values that are mostly allowed."""
    path = rng.choice((COMPLETIONS, COMPLETIONS, CHATS))
    fields = rng.sample(sorted(_MILD), rng.randint(2, 10))
    chosen = {field: rng.choice(_MILD[field]) for field in fields}
    if path == CHATS:
        chosen |= {"logprobs": "true", "top_logprobs": "3"} if rng.random() < 0.3 else {}
    elif rng.random() < 0.3:
        chosen |= {"logprobs": rng.choice(("0", "5")), "echo": rng.choice(("true", "false"))}
    shot = _shot(path, chosen)
    if rng.random() >= ABORTED:
        return shot
    leave: Sequence[Literal["at once", "after the first event"]]
    leave = ("at once", "after the first event") if chosen.get("stream") == "true" else ("at once",)
    return Shot(shot.path, shot.body, rng.choice(leave))


def _shot(path: str, fields: Mapping[str, str]) -> Shot:
    told = {"messages": MESSAGES[0]} if path == CHATS else {"prompt": '"abc"'}
    short = {} if path == TOKENIZE else {"max_tokens": "3"}
    parts = (f"{json.dumps(name)}: {value}" for name, value in {**told, **short, **fields}.items())
    return Shot(path, "{" + ", ".join(parts) + "}")
