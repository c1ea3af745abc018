"""Measured parameters of kernels: what is kept, found, and refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from fjx.kernels import tuning
from fjx.kernels.tuning import Tuned

HERE = jax.devices()[0].device_kind


def tuned(shape: str = "64 rows", device: str = HERE, version: str = jax.__version__) -> Tuned:
    return Tuned("attention", shape, device, version, {"blocks": 264, "stages": 2})


@pytest.fixture(autouse=True)
def _tables_as_before() -> Iterator[None]:
    before = list(tuning._tables)
    yield
    tuning._tables[:] = before


def test_what_was_measured_is_found_by_kernel_shape_device_and_version(tmp_path: Path) -> None:
    tuning.keep(tmp_path, [tuned(), tuned("another GPU", "H1000"), tuned("old", version="0.9")])
    tuning.use(tmp_path)
    assert tuning.parameters("attention", "64 rows") == {"blocks": 264, "stages": 2}
    for kernel, shape in (("attention", "128 rows"), ("product", "64 rows")):
        assert tuning.parameters(kernel, shape) == {}
    for shape in ("another GPU", "old"):
        assert tuning.parameters("attention", shape) == {}


def test_a_new_measurement_takes_the_place_of_the_old_one_and_others_stay(tmp_path: Path) -> None:
    tuning.keep(tmp_path / "new", [tuned(), tuned("128 rows")])
    again = Tuned("attention", "64 rows", HERE, jax.__version__, {"blocks": 132})
    tuning.keep(tmp_path / "new", [again])
    tuning.use(tmp_path / "new")
    assert tuning.parameters("attention", "64 rows") == {"blocks": 132}
    assert tuning.parameters("attention", "128 rows") == {"blocks": 264, "stages": 2}


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [
        ("attention", {"chunk": 1024}),
        ("no such kernel", {"blocks": 1}),
        ("attention", {"blocks": 0}),
        ("attention", {"blocks": "132"}),
        ("attention", {"blocks": True}),
    ],
)
def test_what_could_change_results_or_is_no_number_is_refused(
    kernel: str, parameters: dict[str, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"cannot be tuned|positive integer"):
        Tuned(kernel, "64 rows", HERE, jax.__version__, parameters)
    entry = {"kernel": kernel, "shape": "64 rows", "device": HERE, "jax": jax.__version__}
    (tmp_path / tuning.FILE).write_text(json.dumps([{**entry, "parameters": parameters}]))
    with caplog.at_level(logging.WARNING):
        tuning.use(tmp_path)
    assert "tune again" in caplog.text
    assert tuning.parameters(kernel, "64 rows") == {}


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"kernel": "attention"}]', "7"])
def test_a_broken_table_is_left_out_and_can_be_written_anew(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / tuning.FILE).write_text(text)
    with caplog.at_level(logging.WARNING):
        tuning.use(tmp_path)
    assert str(tmp_path) in caplog.text
    assert tuning.parameters("attention", "64 rows") == {}
    tuning.keep(tmp_path, [tuned()])
    tuning.use(tmp_path)
    assert tuning.parameters("attention", "64 rows")["blocks"] == 264


def test_without_a_table_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuning.use(tmp_path / "nowhere")
    assert tuning.parameters("attention", "64 rows") == {}
    assert not caplog.records
