"""Lets vLLM's tests talk to ``fjx serve``: a pytest plugin that stands for what they import.

``tests.utils.RemoteOpenAIServer`` starts fjx under the name of the test's model; the tokenizer and
the vocabulary's size are those of the model that answers. Whatever else of ``vllm`` and ``torch``
the test files import are empty classes: tests that use them do not apply, and the list says so.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import openai
import pytest
from server import Server, SharedServer
from tokenizers import Tokenizer

pytest_plugins = ["applicable"]

MODEL = "smollm2-135m"
API_KEY = "token-abc123"
BASE_OPTIONS = ("--kv-cache-memory", "0.4", "--drafter", "off", "--max-num-seqs", "8")
TAKEN = {"--max-num-batched-tokens": 1, "--no-enable-prefix-caching": 0}
"""Options of ``vllm serve`` that fjx has, with the number of their values. The others choose a
number format, a device's memory, adapters, or what fjx always does."""
LONG_CONTEXT, SHORT_CONTEXT = 4096, 1024
"""Tokens. Where no test has a long prompt, answers that nothing else ends are ended earlier."""
CLIENT_SECONDS = 600.0


class RemoteOpenAIServer:
    """What vLLM's tests know of a server."""

    DUMMY_API_KEY = API_KEY
    shared: SharedServer

    def __init__(
        self,
        model: str,
        vllm_serve_args: Sequence[str],
        *,
        env_dict: Mapping[str, str] | None = None,
        **_: object,
    ) -> None:
        options = [*BASE_OPTIONS, "--model", MODEL, "--served-model-name", model]
        arguments = list(vllm_serve_args)
        context = LONG_CONTEXT if "--enable-chunked-prefill" in arguments else SHORT_CONTEXT
        options += ["--max-model-len", str(context)]
        for position, argument in enumerate(arguments):
            if argument in TAKEN:
                options += arguments[position : position + 1 + TAKEN[argument]]
        if env_dict and "VLLM_API_KEY" in env_dict:
            options += ["--api-key", env_dict["VLLM_API_KEY"]]
        self._server: Server = self.shared.start(options)

    def __enter__(self) -> RemoteOpenAIServer:
        return self

    def __exit__(self, *_: object) -> None:
        """The next test may want the same server."""

    @property
    def url_root(self) -> str:
        """Address without a path."""
        return self._server.url

    def url_for(self, *parts: str) -> str:
        """Address of a path."""
        return "/".join([self.url_root, *(part.strip("/") for part in parts if part)])

    def get_client(self, **options: Any) -> openai.OpenAI:
        """A client."""
        return openai.OpenAI(**self._client_options(options))

    def get_async_client(self, **options: Any) -> openai.AsyncOpenAI:
        """A client."""
        return openai.AsyncOpenAI(**self._client_options(options))

    def _client_options(self, options: dict[str, Any]) -> dict[str, Any]:
        known = {"base_url": self.url_for("v1"), "api_key": API_KEY, "max_retries": 0}
        return {"timeout": CLIENT_SECONDS, **known, **options}


class ServedTokenizer:
    """The tokenizer of the model that answers, whichever is asked for."""

    file: Path

    def __init__(self) -> None:
        self._backend = Tokenizer.from_file(str(self.file))

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        return list(self._backend.encode(text).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))


class ServedModelConfig:
    """The model that answers."""

    def __init__(self, **_: object) -> None:
        pass

    def get_vocab_size(self) -> int:
        """Tokens in its vocabulary."""
        return Tokenizer.from_file(str(ServedTokenizer.file)).get_vocab_size()


class NoPlatform:
    """Says no to every question about the device."""

    def __getattr__(self, name: str) -> Callable[[], bool]:
        return lambda: False


STAND_INS: dict[str, dict[str, Any]] = {
    "tests.utils": {"RemoteOpenAIServer": RemoteOpenAIServer},
    "vllm.tokenizers": {"get_tokenizer": lambda *_, **__: ServedTokenizer()},
    "vllm.platforms": {"current_platform": NoPlatform()},
    "vllm.config": {"ModelConfig": ServedModelConfig},
    "vllm.transformers_utils.repo_utils": {
        "hf_api": lambda: SimpleNamespace(snapshot_download=lambda repo_id: repo_id)
    },
    "torch": {
        "long": "int64",
        "iinfo": lambda _: SimpleNamespace(min=-(2**63), max=2**63 - 1),
    },
}


class _StandIn(ModuleType):
    """A module whose unknown names are empty classes."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (Exception,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        if name == "tests.utils" or name.partition(".")[0] in ("vllm", "torch"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        module = _StandIn(spec.name)
        vars(module).update(STAND_INS.get(spec.name, {}))
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the judge's script hands over."""
    parser.addoption("--tokenizer", required=True, type=Path, help="tokenizer.json of the model")


def pytest_configure(config: pytest.Config) -> None:
    """Stand in before test files are imported."""
    RemoteOpenAIServer.shared = SharedServer(config.getoption("fjx_python"))
    ServedTokenizer.file = config.getoption("tokenizer")
    sys.meta_path.insert(0, _Finder())
