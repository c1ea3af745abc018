"""Whatever a body holds, the server answers, and not with an error of its own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fjx.serving.app import create_app
from fjx.serving.config import ServerConfig
from fjx.serving.fields import IGNORED, REFUSED
from fjx.serving.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from tests.http_cases import CALL, USER
from tests.unit.serving.fake_llm import FakeLLM

BODIES: dict[str, tuple[dict[str, Any], Any]] = {
    "/v1/completions": ({"prompt": "a", "max_tokens": 2}, CompletionRequest),
    "/v1/chat/completions": ({"messages": USER, "max_tokens": 2}, ChatRequest),
    "/tokenize": ({"messages": USER}, TokenizeRequest),
    "/detokenize": ({"tokens": [72]}, DetokenizeRequest),
}
EDGES = [
    *(0, -0.0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**4000),
    *(1e-45, 1e-300, 3.5e38, 1e39, 1e308, 0.5, 1.0, float("inf"), float("-inf"), float("nan")),
    *("", "a", "\0", "\ud800", "😀", "9" * 5000, "a" * 5000, "{{", "__class__", "none", "auto"),
    *(None, True, False, [], {}, [[]], [{}], {"": None}, {"self": 1}, [None], [[1], "a"], [1, "a"]),
]
VALUES = st.recursive(
    st.sampled_from(EDGES) | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "developer", "king"]) | VALUES},
        optional={
            "content": st.text(max_size=8) | VALUES | st.just([{"type": "text", "text": "a"}]),
            "tool_calls": st.just([CALL]) | VALUES,
            "name": VALUES,
            "reasoning": VALUES,
            "thoughts": VALUES,
        },
    ),
    max_size=3,
)
NESTED = {
    "messages": MESSAGES,
    "stream": st.booleans(),
    "stream_options": st.dictionaries(
        st.sampled_from(["include_usage", "continuous_usage_stats", "x"]), VALUES, max_size=2
    ),
    "logit_bias": st.dictionaries(
        st.sampled_from(["1", "01", "-1", "٣", "9" * 5000, "a"]), VALUES, max_size=2
    ),
    "chat_template_kwargs": st.dictionaries(
        st.sampled_from(["self", "messages", "tools", "range", "__init__"]), VALUES, max_size=2
    ),
}


@st.composite
def bodies(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """A body that is right but for some fields."""
    body, model = BODIES[path]
    names = [*model.model_fields, *REFUSED, *IGNORED]
    changed = draw(st.lists(st.sampled_from(names) | st.text(max_size=8), min_size=1, max_size=4))
    return {**body, **{name: draw(VALUES | NESTED.get(name, VALUES)) for name in changed}}


@pytest.mark.parametrize("path", [*BODIES, "/v1/plan"])
def test_no_body_is_an_error_of_the_servers_own(path):
    llm = FakeLLM()
    app = create_app(llm, ServerConfig())

    async def status(body: Any) -> httpx.Response:
        app.state.server.stopping = asyncio.Event()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(transport=transport, base_url="http://fjx") as client:
            return await client.post(path, content=json.dumps(body).encode(), headers=headers)

    plans = st.dictionaries(
        st.sampled_from(["stages", "mesh", "replicas", "wait", "microbatches", "x"]), VALUES
    )

    @settings(max_examples=150, suppress_health_check=list(HealthCheck), database=None)
    @given(plans if path == "/v1/plan" else bodies(path))
    def answers(body: dict[str, Any]) -> None:
        response = asyncio.run(status(body))
        assert response.status_code in (200, 202, 400, 404, 409), response.text
        if response.status_code >= 400:
            error = response.json()["error"]
            assert error["message"]
            assert len(error["message"]) < 6000

    answers()
