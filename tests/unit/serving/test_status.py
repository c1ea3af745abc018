from __future__ import annotations

import pytest

from fjx import UserError, __version__
from fjx.serving.config import ServerConfig
from tests.unit.serving.fake_llm import BOS


def test_models(call):
    answer = call("GET", "/v1/models").json()
    assert answer["object"] == "list"
    [card] = answer["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("tiny", "model", 100)
    assert call("GET", "/v1/models/tiny").json()["id"] == "tiny"
    assert call("GET", "/v1/models/org/other").json()["error"]["code"] == "model_not_found"


def test_served_name_replaces_the_models_own(call):
    config = ServerConfig(served_model_name=("org/chat",))
    card = call("GET", "/v1/models/org/chat", config).json()
    assert (card["id"], card["root"]) == ("org/chat", "tiny")
    answer = call("POST", "/v1/completions", config, json={"model": "org/chat", "prompt": "Hi"})
    assert answer.json()["model"] == "org/chat"
    assert call("GET", "/v1/models/tiny", config).status_code == 404


def test_a_model_may_have_several_names_of_which_answers_carry_the_first(call):
    config = ServerConfig(served_model_name=("org/chat", "default"))
    assert [card["id"] for card in call("GET", "/v1/models", config).json()["data"]] == [
        "org/chat",
        "default",
    ]
    assert call("GET", "/v1/models/default", config).json()["id"] == "default"
    for name in ("org/chat", "default"):
        answer = call("POST", "/v1/completions", config, json={"model": name, "prompt": "Hi"})
        assert answer.json()["model"] == "org/chat"
    refused = call("POST", "/v1/completions", config, json={"model": "tiny", "prompt": "Hi"})
    assert refused.status_code == 404
    assert "serves 'org/chat', 'default'" in refused.json()["error"]["message"]


def test_health_and_readiness(call, llm):
    assert call("GET", "/health").status_code == 200
    assert call("GET", "/ready").status_code == 200
    llm.is_ready = False
    assert call("GET", "/health").status_code == 200
    assert call("GET", "/ready").status_code == 503


def test_version(call):
    assert call("GET", "/version").json() == {"version": __version__}


def test_interface_is_described(call):
    paths = call("GET", "/openapi.json").json()["paths"]
    body = paths["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].endswith("/CompletionRequest")


def test_tokenize_and_back(post):
    answer = post("/tokenize", prompt="Hé", return_token_strs=True).json()
    assert answer == {
        "count": 4,
        "max_model_len": 100,
        "tokens": [BOS, 72, 0xC3, 0xA9],
        "token_strs": ["<bos>", "H", "bytes:\\xc3", "bytes:\\xa9"],
    }
    assert post("/detokenize", tokens=answer["tokens"]).json() == {"prompt": "<bos>Hé"}
    bare = post("/tokenize", prompt="Hi", add_special_tokens=False).json()
    assert (bare["tokens"], bare["token_strs"]) == ([72, 105], None)


def test_tokenize_a_conversation(post):
    answer = post("/tokenize", messages=[{"role": "user", "content": "Hi"}]).json()
    assert bytes(answer["tokens"]).decode() == "user: Hi\nassistant: "


def test_browsers_are_kept_out_unless_their_origin_is_allowed(call):
    headers = {"Origin": "https://page.example"}
    name = "access-control-allow-origin"
    assert name not in call("GET", "/v1/models", headers=headers).headers
    config = ServerConfig(allowed_origins=("https://page.example",), api_key="secret")
    assert call("GET", "/health", config, headers=headers).headers[name] == headers["Origin"]
    preflight = {**headers, "Access-Control-Request-Method": "POST"}
    assert call("OPTIONS", "/v1/completions", config, headers=preflight).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"port": 70_000},
        {"port": -1},
        {"api_key": ""},
        {"admin_key": ""},
        {"shutdown_timeout": -1},
        {"max_body_bytes": 0},
    ],
)
def test_wrong_configuration_names_the_field(fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        ServerConfig(**fields)
