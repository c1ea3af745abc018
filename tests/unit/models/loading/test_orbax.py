"""Orbax folders: what is saved comes back, part by part, and broken folders are named."""

from __future__ import annotations

import json
import shutil
import weakref

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fjx.errors import ModelError
from fjx.models.loading.load import load_model_config, read_tensors
from fjx.models.loading.orbax import save_checkpoint
from fjx.models.loading.source import ModelSource, resolve


def load(source):
    return dict(read_tensors(source, load_model_config(source)))


@pytest.fixture
def saved(llama, tmp_path):
    path = tmp_path / "saved"
    save_checkpoint(path, llama.config, llama.tensors.items())
    return resolve(str(path))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "opt"])
def test_a_saved_model_comes_back(family, random_model, assert_same, tmp_path):
    model = random_model(family)
    path = tmp_path / "new" / "folder"
    save_checkpoint(path, model.config, model.tensors.items())
    source = resolve(str(path))
    assert source.kind == "orbax"
    assert load_model_config(source) == model.config
    assert_same(load(source), model.tensors)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_tensors_keep_their_dtype(dtype, llama, tmp_path):
    tensors = {name: values.astype(dtype) for name, values in llama.tensors.items()}
    save_checkpoint(tmp_path / "saved", llama.config, tensors.items())
    for name, values in load(resolve(str(tmp_path / "saved"))).items():
        assert values.dtype == dtype
        np.testing.assert_array_equal(values.view(np.uint16), tensors[name].view(np.uint16))


def test_saving_holds_one_part_of_the_model_at_a_time(random_model, tmp_path):
    model = random_model("llama", num_hidden_layers=6)
    alive = weakref.WeakSet()

    def tensors():
        for name, values in model.tensors.items():
            copy = values.copy().view(Counted)
            alive.add(copy)
            most.append(len(alive))
            yield name, copy
            del copy

    most = []
    save_checkpoint(tmp_path / "saved", model.config, tensors())
    a_layer = sum(name.startswith("layers.0.") for name in model.tensors)
    assert max(most) <= a_layer + 1  # the first tensor of the next part shows that one is whole


class Counted(np.ndarray):
    __hash__ = object.__hash__


def test_stock_orbax_reads_a_part(saved, llama):
    with ocp.PyTreeCheckpointer() as checkpointer:
        head = checkpointer.restore(saved.path / "weights" / "head")
    np.testing.assert_array_equal(head["norm"], llama.tensors["head.norm"])


def test_a_folder_in_use_is_left_alone(llama, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="exists already"):
        save_checkpoint(tmp_path, llama.config, llama.tensors.items())
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_save_that_fails_half_way_leaves_nothing(llama, tmp_path):
    def tensors():
        yield from list(llama.tensors.items())[:5]
        raise ModelError("the source is truncated")

    with pytest.raises(ModelError, match="the source is truncated"):
        save_checkpoint(tmp_path / "saved", llama.config, tensors())
    assert list(tmp_path.iterdir()) == []


def _without_layer(source, description):
    shutil.rmtree(source.path / "weights" / "layers.1")


def _with_broken_data(source, description):
    for file in (source.path / "weights" / "layers.1").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _resave(source, **changes):
    folder = source.path / "weights" / "layers.1"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = {**checkpointer.restore(folder), **changes}
        tree = {name: values for name, values in tree.items() if values is not None}
        checkpointer.save(folder, tree, force=True)


def _with_nan(source, description):
    _resave(source, o=np.full((128, 64), np.nan, np.float32))


def _with_wrong_shape(source, description):
    _resave(source, o=np.ones((64, 128), np.float32))


def _with_wrong_dtype(source, description):
    _resave(source, o=np.ones((128, 64), np.int32))


def _without_tensor(source, description):
    _resave(source, o=None)


def _without_description_of_tensor(source, description):
    del description["tensors"]["layers.1.o"]


def _with_unknown_tensor(source, description):
    description["tensors"]["layers.1.experts"] = description["tensors"]["layers.1.o"]


def _of_another_version(source, description):
    description["format"] = 99


def _without_config(source, description):
    del description["config"]


def _with_unknown_field(source, description):
    description["config"]["colour"] = "blue"


@pytest.mark.parametrize(
    ("damage", "file", "complaint"),
    [
        (_without_layer, "weights/layers.1", "is missing"),
        (_with_broken_data, "weights/layers.1", "cannot be read"),
        (_with_nan, "weights/layers.1", r"'layers.1.o' holds NaN or infinite values"),
        (_with_wrong_shape, "weights/layers.1", r"'layers.1.o' has shape \(64, 128\), expected"),
        (_with_wrong_dtype, "weights/layers.1", r"'layers.1.o' has the dtype int32"),
        (_without_tensor, "weights/layers.1", r"'layers.1.o' is missing"),
        (_without_description_of_tensor, "fjx_model.json", r"'layers.1.o' is missing"),
        (_with_unknown_tensor, "fjx_model.json", r"'layers.1.experts' is not part of"),
        (_of_another_version, "fjx_model.json", "format 99, this version reads 1"),
        (_without_config, "fjx_model.json", "expected an object 'config'"),
        (_with_unknown_field, "fjx_model.json", "colour"),
    ],
)
def test_a_broken_folder_is_named(damage, file, complaint, saved):
    marker = saved.path / "fjx_model.json"
    description = json.loads(marker.read_text())
    damage(saved, description)
    marker.write_text(json.dumps(description))
    with pytest.raises(ModelError, match=complaint) as caught:
        load(saved)
    assert str(saved.path / file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreadable_description_is_named(saved):
    marker = saved.path / "fjx_model.json"
    marker.write_text("{")
    with pytest.raises(ModelError, match="not valid JSON") as caught:
        load_model_config(ModelSource("orbax", saved.path, "saved"))
    assert str(marker) in str(caught.value)
