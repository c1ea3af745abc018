"""GET /openapi.json says what the server does."""

from __future__ import annotations

import pytest

from fjx.serving.config import ServerConfig
from fjx.serving.fields import IGNORED, REFUSED

EVERYWHERE = {"401", "500", "503"}
EXPECTED = {
    ("post", "/v1/completions"): {"200", "400", "404", "408", "413", "415", "429"},
    ("post", "/v1/chat/completions"): {"200", "400", "404", "408", "413", "415", "429"},
    ("post", "/tokenize"): {"200", "400", "404", "408", "413", "415"},
    ("post", "/v1/tokenize"): {"200", "400", "404", "408", "413", "415"},
    ("post", "/detokenize"): {"200", "400", "404", "408", "413", "415"},
    ("get", "/tokenizer_info"): {"200"},
    ("get", "/v1/models"): {"200"},
    ("get", "/v1/models/{model}"): {"200", "404"},
    ("get", "/v1/plan"): {"200"},
    ("post", "/v1/plan"): {"200", "202", "400", "403", "408", "409", "413", "415"},
    ("delete", "/v1/plan"): {"200", "409"},
    ("get", "/health"): {"200"},
    ("get", "/ping"): {"200"},
    ("post", "/ping"): {"200"},
    ("get", "/ready"): {"200"},
    ("get", "/load"): {"200"},
    ("get", "/version"): {"200"},
    ("get", "/metrics"): {"200"},
}


@pytest.fixture
def described(call):
    return call("GET", "/openapi.json").json()


def test_statuses_are_those_that_come(described):
    found = {
        (method, path): set(operation["responses"])
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    }
    for place, statuses in EXPECTED.items():
        assert found[place] == statuses | EVERYWHERE, place


def test_every_error_has_the_shape_of_one(described):
    for operations in described["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorResponse"}
    assert "HTTPValidationError" not in described["components"]["schemas"]


@pytest.mark.parametrize(
    ("method", "path", "types"),
    [
        ("post", "/v1/completions", {"application/json", "text/event-stream"}),
        ("post", "/v1/chat/completions", {"application/json", "text/event-stream"}),
        ("get", "/metrics", {"text/plain; version=1.0.0"}),
        ("get", "/health", set()),
        ("get", "/ready", set()),
        ("get", "/load", {"application/json"}),
        ("post", "/v1/plan", {"application/json"}),
    ],
)
def test_media_types_are_those_that_come(described, method, path, types):
    response = described["paths"][path][method]["responses"]["200"]
    assert set(response.get("content", {})) == types


def test_operations_have_names_of_their_own(described):
    names = [
        operation["operationId"]
        for operations in described["paths"].values()
        for operation in operations.values()
    ]
    assert len(names) == len(set(names))


def test_requests_take_no_other_fields_than_are_listed(described):
    schemas = described["components"]["schemas"]
    for name in ("CompletionRequest", "ChatRequest", "TokenizeRequest", "DetokenizeRequest"):
        assert schemas[name]["additionalProperties"] is False
        assert schemas[name]["properties"].keys() >= IGNORED.keys()
        assert not schemas[name]["properties"].keys() & REFUSED.keys()
        assert "Ignored" in schemas[name]["properties"]["user"]["description"]


def test_keys_are_described_where_they_are_needed(call, described):
    assert "security" not in described
    config = ServerConfig(api_key="secret")
    headers = {"X-Api-Key": "secret"}
    closed = call("GET", "/openapi.json", config, headers=headers).json()
    assert closed["components"]["securitySchemes"].keys() == {"bearer", "header"}
