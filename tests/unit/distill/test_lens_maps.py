"""Maps of a logit lens, with a model of toy size."""

from __future__ import annotations

import numpy as np
import pytest
from jax import numpy as jnp

from fjx.distill.corpus import TargetSample
from fjx.distill.lens_maps import depths, fit_maps, ridge
from fjx.distill.target import DistillTarget
from fjx.models.reduced_head import ReducedHead
from fjx.models.tensors import random_tensors
from tests.unit.distill.tiny_target import CONFIG

HEAD = ReducedHead(CONFIG, np.arange(0, CONFIG.vocab_size, 2, dtype=np.int32))


def target(last_layer: float = 1.0) -> DistillTarget:
    """Its last layer adds so many times what it would add."""

    def scaled(name: str, values: np.ndarray) -> np.ndarray:
        return values * last_layer if name in ("layers.2.o", "layers.2.down") else values

    drawn = [(name, scaled(name, x)) for name, x in random_tensors(CONFIG, seed=2, scale=0.3)]
    return DistillTarget(CONFIG, jnp.dtype("float32"), lambda take: [take(*each) for each in drawn])


@pytest.fixture(scope="module")
def samples() -> list[TargetSample]:
    draw = np.random.default_rng(0)
    return [
        TargetSample(
            draw.integers(0, CONFIG.vocab_size, 60).astype(np.int32), 20, "chat", 0.0, i % 5 == 0
        )
        for i in range(60)
    ]


def test_least_squares_find_a_linear_map() -> None:
    draw = np.random.default_rng(0)
    x, turn = draw.standard_normal((5000, 8)), draw.standard_normal((8, 3))
    y = x @ turn + 0.1 * draw.standard_normal((5000, 3))
    np.testing.assert_allclose(ridge(x.T @ x, x.T @ y), turn, atol=0.05)


def test_steps_are_looked_at_in_the_second_half() -> None:
    assert depths(CONFIG) == [2]


def test_a_map_that_helps_is_kept(samples: list[TargetSample]) -> None:
    maps, looks = fit_maps(target(), HEAD, samples, acceptance=0.0)
    assert looks.keys() == maps.keys() == {2}
    assert maps[2].shape == (CONFIG.hidden_size,) * 2
    assert 1 > looks[2].mapped > looks[2].as_it_is > 0


def test_a_map_that_tells_less_than_the_head_is_not(samples: list[TargetSample]) -> None:
    maps, looks = fit_maps(target(), HEAD, samples, acceptance=looks_of(samples) + 0.01)
    assert not maps
    assert not looks[2].helps


def looks_of(samples: list[TargetSample]) -> float:
    return fit_maps(target(), HEAD, samples, acceptance=0.0)[1][2].mapped


def test_a_map_that_changes_nothing_is_not(samples: list[TargetSample]) -> None:
    maps, looks = fit_maps(target(last_layer=0.0), HEAD, samples, acceptance=0.0)
    assert looks[2].as_it_is == 1
    assert not maps
