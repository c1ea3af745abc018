"""What a configuration with a cluster may ask for, and what it is told otherwise."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from fjx.config import EngineConfig
from fjx.engine.start import start_engine
from fjx.errors import UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drafter": "head"}, "no draft head drafts, got 'head': .* use ngram, or a draft model"),
        ({"drafter": "my/head.safetensors"}, "no draft head drafts"),
        ({"pruning": "auto"}, "nothing is pruned, got 'auto': .* set pruning to off"),
        ({"draft_ahead": "always"}, "nothing is drafted beside a step"),
    ],
)
def test_what_needs_the_target_in_its_process_is_refused(
    options: dict[str, Any], message: str
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")
    with pytest.raises(UserError, match=message):
        start_engine(EngineConfig(cluster="auto", **options))


def test_without_ray_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fjx.cluster.cluster", None)
    with pytest.raises(UserError, match="pip install ray"):
        start_engine(EngineConfig(cluster="auto"))


@pytest.mark.parametrize("options", [{"idle_timeout": 60.0}, {"cluster_file": "cluster.toml"}])
def test_what_is_for_a_cluster_is_a_mistake_without_one(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=f"{name} is for a cluster; name one with cluster"):
        EngineConfig(**options)


def test_a_cluster_file_that_cannot_be_read_is_named() -> None:
    pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")
    with pytest.raises(UserError, match=r"cannot read cluster file .*nowhere.toml"):
        start_engine(EngineConfig(cluster="auto", cluster_file="nowhere.toml"))


def test_one_process_does_not_import_ray() -> None:
    code = "import sys, fjx.engine.start, fjx.serving.run; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
