"""One Ray cluster on this machine for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="package")
def nodes() -> Iterator[Any]:
    """Three nodes, whose workers find this folder. Who adds nodes removes them."""
    from benchmarks.local_cluster.nodes import local_nodes
    from tests.unit.cluster.cluster_cases import NODES

    with local_nodes(NODES, str(Path.cwd())) as cluster:
        yield cluster


@pytest.fixture(scope="package")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs, which the first test leaves to the others."""
    return tmp_path_factory.mktemp("programs")
