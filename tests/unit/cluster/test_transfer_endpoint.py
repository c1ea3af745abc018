"""Arrays between two ends of the transfer library in this process."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fjx.cluster.messages import RemoteArray
from fjx.cluster.transfer_endpoint import TransferEndpoint, wait_for


@pytest.fixture(scope="module")
def ends() -> tuple[TransferEndpoint, TransferEndpoint]:
    return TransferEndpoint("127.0.0.1"), TransferEndpoint("127.0.0.1")


def struct() -> jax.ShapeDtypeStruct:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[1])
    return jax.ShapeDtypeStruct((3,), jnp.float32, sharding=sharding)


def test_what_is_offered_can_be_fetched_before_and_after(
    ends: tuple[TransferEndpoint, TransferEndpoint],
) -> None:
    ours, theirs = ends
    values = jnp.arange(3.0)
    early = theirs.fetch(RemoteArray(ours.address, 1), [struct()])
    ours.offer(1, [values])
    ours.offer(2, [values + 1])
    late = theirs.fetch(RemoteArray(ours.address, 2), [struct()])
    wait_for([*early, *late], 10.0, "both")
    np.testing.assert_array_equal(early[0], values)
    np.testing.assert_array_equal(late[0], values + 1)
    assert early[0].devices() == {jax.local_devices()[1]}


def test_an_error_arrives_as_one_and_spreads(
    ends: tuple[TransferEndpoint, TransferEndpoint],
) -> None:
    ours, theirs = ends
    (fetched,) = theirs.fetch(RemoteArray(ours.address, 3), [struct()])
    doubled = jax.jit(lambda x: 2 * x)(fetched)
    ours.offer_error(3, [struct()], "stage 4 has no memory left")
    with pytest.raises(jax.errors.JaxRuntimeError, match="stage 4 has no memory left"):
        wait_for([doubled], 10.0, "it")


def test_waiting_has_a_limit_and_says_for_what(
    ends: tuple[TransferEndpoint, TransferEndpoint],
) -> None:
    ours, theirs = ends
    pending = theirs.fetch(RemoteArray(ours.address, 4), [struct()])
    with pytest.raises(TimeoutError, match=r"piece 7 did not arrive within 0\.05 s"):
        wait_for(pending, 0.05, "piece 7")
    ours.offer(4, [jnp.zeros(3)])
    wait_for(pending, 10.0, "piece 7")


def test_who_is_forgotten_keeps_nobody_waiting() -> None:
    ours, theirs = TransferEndpoint("127.0.0.1"), TransferEndpoint("127.0.0.1")
    (pending,) = theirs.fetch(RemoteArray(ours.address, 1), [struct()])
    later = jax.jit(lambda x: x + 1)(pending)
    theirs.forget(ours.address)
    (too_late,) = theirs.fetch(RemoteArray(ours.address, 2), [struct()])
    for each in (later, too_late):
        with pytest.raises(jax.errors.JaxRuntimeError):
            wait_for([each], 10.0, "it")


def test_an_address_can_be_forgotten_before_anything_was_fetched_from_it() -> None:
    ours, theirs = TransferEndpoint("127.0.0.1"), TransferEndpoint("127.0.0.1")
    theirs.forget(ours.address)
    ours.offer(1, [jnp.zeros(3)])
    with pytest.raises(jax.errors.JaxRuntimeError):
        wait_for(theirs.fetch(RemoteArray(ours.address, 1), [struct()]), 10.0, "it")
