"""Every example of the documents: run, or at least taken apart and checked.

A new fenced block is tested by itself. What costs too much to run, or needs what a test does not
have, stands in `CHECKED_ONLY`, with the reason.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

import fjx.llm
from fjx.cli.config_file import read_config_file
from fjx.cli.main import main
from fjx.cli.sections import FILE_SECTIONS
from fjx.config import EngineConfig
from fjx.serving.app import create_app
from fjx.serving.config import ServerConfig
from fjx.sharding.costs.analytic import analytic_graph
from fjx.sharding.costs.profile import graph_to_json
from fjx.sharding.planner.mesh_file import parse_mesh
from fjx.sharding.topology.cluster_file import parse_cluster
from tests.unit.engine.tiny import LetterTokenizer, tiny_engine
from tests.unit.example_blocks import ROOT, Block, Command, blocks, commands
from tests.unit.granularity.test_policy_log import eventful, written
from tests.unit.serving.conftest import serving
from tests.unit.serving.fake_llm import FakeLLM
from tests.unit.sharding.toy import FIGURES, SIZES

LOADS = "it loads a model; its options and values are checked, and its meshes are planned"
FJX_CHECKED_ONLY = {
    "serve": LOADS + "; tests/e2e serves",
    "generate": LOADS,
    "convert": LOADS,
    "distill": LOADS,
    "bench": LOADS,
    "profile": "it measures for minutes; its options are checked",
}
CHECKED_ONLY = {
    "bash": "it sets up or runs all tests; the script must exist and know its arguments",
    "python": "a benchmark takes minutes to hours; the script must exist and have the options",
    "pip": "it installs; nothing may be asked for under the name of fjx, which is not on an index",
    "ray": "it starts a cluster on the machine; tests/e2e/test_cluster.py does",
    "lm_eval": "it is a program of its own that fetches its questions; benchmarks/judges runs it",
    "pre-commit": "it changes the checkout's hooks",
    "echo": "it only feeds the next command",
    "mkdir": "a folder of other engines' installations",
    "touch": "likewise",
    "printf": "likewise",
    "record=": "likewise",
}
SKETCHES = {
    "windows, state = ArrivalWindows(started=now()), PolicyState()": (
        "it leaves out (...) what the engine does; it must be Python"
    ),
}
ALIASES = {"python3.11": "python", "python3": "python"}
ALL = blocks()


def of(*languages: str) -> Any:
    chosen = [block for block in ALL if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=lambda block: block.id)


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    for block in ALL:
        assert block.language in ("bash", "python", "toml", "json", "text", ""), block.id
        if block.language == "":
            assert block.text.startswith("$ "), f"{block.id}: commands begin with $; else: text"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an example runs, with the files that examples speak of."""
    graph = analytic_graph(replace(SIZES, vocab_size=96), [1] * 8, [16], FIGURES)
    (tmp_path / "profile.json").write_text(json.dumps(graph_to_json(graph)))
    (tmp_path / "decisions.jsonl").write_text("\n".join(written(eventful())[0]) + "\n")
    for block in ALL:
        if block.language == "" and block.text.startswith("$ cat cluster.toml\n"):
            (tmp_path / "cluster.toml").write_text(next(commands(block)).output or "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class ReachedError(Exception):
    """All that a command checks before it loads a model is in order."""


@cache
def check_mesh(name: str) -> None:
    """A ready-made mesh suits the embedded model."""
    assert main(["plan", "--mesh", name, "--devices", "8"]) == 0, name


def check_fjx(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Go as far as the command goes before it loads or measures anything, and plan its meshes."""
    engines: list[EngineConfig] = []

    def reach(*arguments: Any, **options: Any) -> Any:
        engines.extend(each for each in arguments if isinstance(each, EngineConfig))
        raise ReachedError

    for begins in (
        "fjx.serving.run.serve",
        "fjx.cli.generate.open_llm",
        "fjx.bench.offline.open_llm",
        "fjx.bench.load.run_load",
        "fjx.distill.distill.distill",
        "fjx.cli.profile._measure",
        "fjx.models.loading.convert.convert",
    ):
        monkeypatch.setattr(begins, reach)
    # Drafters and prompts of the reader's own.
    for asks in ("fjx.engine.names.check_drafter_name", "fjx.cli.distill.read_texts"):
        monkeypatch.setattr(asks, lambda name: None)
    stdin = '{"prompt": "a"}\n'
    read_end, write_end = os.pipe()
    os.write(write_end, stdin.encode())
    os.close(write_end)
    with os.fdopen(read_end) as fed:
        monkeypatch.setattr(sys, "stdin", fed)
        with pytest.raises((ReachedError, SystemExit)) as ended:
            main(words)
    if isinstance(ended.value, SystemExit):
        assert "--help" in words
        assert ended.value.code == 0
    for engine in engines:
        if engine.model == EngineConfig.model:
            for mesh in (engine.mesh, engine.draft_mesh, *engine.plan_ladder):
                check_mesh(mesh)


def ask(words: tuple[str, ...]) -> None:
    """Send what curl would send to a server of the embedded model."""
    method, url, body, headers = None, "", None, {}
    arguments = iter(words[1:])
    for word in arguments:
        if word == "-X":
            method = next(arguments)
        elif word in ("-d", "--json"):
            body = next(arguments)
            headers |= {"Content-Type": "application/json"} if word == "--json" else {}
        elif word == "-H":
            name, _, value = next(arguments).partition(": ")
            headers[name] = value
        else:
            assert not word.startswith("-"), f"curl {word}: not known to this test"
            url = word
    llm = FakeLLM()
    llm.max_model_len = 4096
    app = create_app(llm, ServerConfig(served_model_name=("smollm2-135m",)))

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport) as client:
            verb = method or ("GET" if body is None else "POST")
            address = url if "://" in url else f"http://{url}"
            return await client.request(verb, address, content=body, headers=headers)

    answer = asyncio.run(send())
    # aborting a change is refused where none is under way
    expected = (200, 202, 409) if method == "DELETE" else (200, 202)
    assert answer.status_code in expected, answer.text
    if url.endswith("/v1/plan") and body is not None:
        target = json.loads(body)
        mesh = target.get("mesh", f"pipeline-{target.get('stages')}")
        check_mesh(mesh)


def check_script(words: tuple[str, ...]) -> None:
    """A script is there, and every option stands in it."""
    script = ROOT / words[0]
    assert script.is_file(), words[0]
    source = script.read_text()
    for path in (ROOT / "benchmarks").glob("*.py"):
        # options that several scripts share stand beside them
        if f"import {path.stem}" in source or f"from {path.stem} import" in source:
            source += path.read_text()
    for word in words[1:]:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in source or word in source, f"{words[0]} {word}"


def head_of(command: Command) -> str:
    """What a command runs, without its folder."""
    word = command.words[0]
    name = "record=" if word.startswith("record=") else word.rpartition("/")[2]
    return ALIASES.get(name, name)


def run(command: Command, block: Block, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    head, rest = head_of(command), list(command.words[1:])
    match head:
        case "fjx" if rest[0] in FJX_CHECKED_ONLY:
            check_fjx(tuple(rest), monkeypatch)
        case "fjx":
            assert main(rest) == 0
            if command.output is not None:
                assert capsys.readouterr().out.strip() == command.output.strip()
        case "cat":
            assert command.output
        case "wc":
            assert all((ROOT / name).is_file() for name in rest if not name.startswith("-"))
        case "curl":
            ask(command.words)
        case "bash" | "python" if rest[0] not in ("-m", "-c"):
            check_script(tuple(rest))
        case "python":
            assert rest[1] in ("venv", "pip") or rest[0] == "-c", rest
        case "pip":
            assert not any("fjx" in word for word in rest), rest
        case _:
            assert head in CHECKED_ONLY, f"{block.id}: {head} is new; run it here, or say why not"


@of("bash", "")
def test_commands(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    found = list(commands(block))
    assert found
    for command in found:
        run(command, block, monkeypatch, capsys)


@of("python")
def test_python(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    compile(block.text, block.id, "exec")
    if block.text.splitlines()[0] in SKETCHES:
        return
    engine = tiny_engine(layers=8, granule_layers=1, num_pages=65)
    engine.check_idle()
    methods: dict[str, Callable[..., Any]] = {
        "encode": lambda self, text, add_special_tokens=True: [ord(c) % 96 for c in text],
        "apply_chat_template": lambda self, messages, **variables: messages[-1]["content"],
    }
    for name, method in methods.items():
        monkeypatch.setattr(LetterTokenizer, name, method, raising=False)
    monkeypatch.setattr(fjx.llm, "start_engine", lambda config, progress: engine)
    fake = FakeLLM("Because.")
    fake.max_model_len = 4096
    text = block.text
    with serving(fake) as server:
        if "http://127.0.0.1:8000" in text:
            text = text.replace("http://127.0.0.1:8000", server.url).replace("smollm2-135m", "tiny")
        exec(compile(text, block.id, "exec"), {"__name__": "example"})
    # what is replayed differs in nothing, and says nothing
    assert capsys.readouterr().out.strip() or "print(" not in block.text or "replay" in block.text


@of("toml")
def test_toml(block: Block, folder: Path) -> None:
    path = folder / "example.toml"
    path.write_text(block.text)
    if "[[node]]" in block.text:
        assert parse_cluster(block.text).devices
        assert main(["place", "--cluster", str(path), "--stages", "1", "2"]) == 0
        return
    if "[[stage]]" not in block.text:
        assert read_config_file(path, {each.name: each.specs() for each in FILE_SECTIONS})
        return
    mesh = parse_mesh(block.text)
    machine = ["--devices", "8"]
    hosts = {stage.host for stage in mesh.stages} - {None}
    if hosts:
        nodes = "".join(
            f'[[node]]\nname = "{host}"\ndevices = 8\nfree_memory = "20 GiB"\n' for host in hosts
        )
        (folder / "nodes.toml").write_text(nodes)
        machine = ["--cluster", "nodes.toml"]
    assert main(["plan", "--mesh", str(path), *machine]) == 0


@of("json")
def test_json(block: Block) -> None:
    values = json.loads(block.text)
    if "prompt" in values or "messages" in values:
        path = "/v1/completions" if "prompt" in values else "/v1/chat/completions"
        ask(("curl", f"localhost:8000{path}", "--json", block.text))


def test_what_is_only_checked_is_still_there() -> None:
    heads = set()
    for block in ALL:
        if block.language in ("bash", ""):
            for command in commands(block):
                name = head_of(command)
                heads.add(name)
                if name == "fjx":
                    heads.add(command.words[1])
    assert set(CHECKED_ONLY) <= heads, set(CHECKED_ONLY) - heads
    assert set(FJX_CHECKED_ONLY) <= heads
    firsts = {block.text.splitlines()[0] for block in ALL if block.language == "python"}
    assert set(SKETCHES) <= firsts
