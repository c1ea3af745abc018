"""Whether what a configuration names is there: asked before JAX is imported or anything is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fjx.config import EngineConfig
from fjx.errors import ModelError, UserError
from fjx.models.loading.source import (
    check_model_name,
    check_tokenizer_name,
    not_found,
    program_cache,
)
from fjx.sharding.costs.profile import read_profile
from fjx.sharding.planner.mesh_file import load_mesh
from fjx.sharding.topology.cluster_file import read_cluster

HEAD_SUFFIX = ".safetensors"
NO_MODEL = ("auto", "ngram", "head", "off")
"""Drafters that are no draft model."""
_AUTO_MESH = "auto"


def check_names(config: EngineConfig) -> None:
    """Check all that can be told without the model itself, in milliseconds.

    Raises:
        UserError: a model, a drafter, a mesh or a file is not there or is wrong, or the cache
            cannot be written to.
    """
    program_cache(config.cache_dir)
    check_model_name(config.model)
    if config.tokenizer is not None:
        check_tokenizer_name(config.tokenizer)
    if config.drafts:
        check_drafter_name(config.drafter)
    check_meshes((config.mesh, config.draft_mesh, *config.plan_ladder))
    if config.profile is not None:
        read_profile(config.profile)
    if config.cluster_file is not None:
        read_cluster(Path(config.cluster_file))


def check_drafter_name(drafter: str) -> None:
    """Check that there can be such a drafter.

    Raises:
        UserError: there cannot.
    """
    if drafter in NO_MODEL:
        return
    if drafter.endswith(HEAD_SUFFIX):
        if not os.path.isfile(drafter):
            raise ModelError(
                f"{drafter}: there is no such draft head; train one with 'fjx distill'"
            )
        return
    try:
        check_model_name(drafter)
    except ModelError as error:
        if str(error) != str(not_found(drafter)):
            raise
        raise UserError(
            f"drafter {drafter!r} not found; expected {', '.join(NO_MODEL)}, a draft head's "
            f"{HEAD_SUFFIX} file, or a model of the same vocabulary: a folder, a .gguf file, a "
            "Hugging Face hub id or the name of an embedded model"
        ) from None


def check_meshes(names: Iterable[str]) -> None:
    """Check that there are such meshes, and that their files can be read.

    Raises:
        MeshError: there is none, or it is wrong.
    """
    for name in names:
        if name != _AUTO_MESH:
            load_mesh(name)
