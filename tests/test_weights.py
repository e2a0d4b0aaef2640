"""WeightStore: what a worker gets is what the learner published, and it outlives the learner."""

import dataclasses
import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest
import ray

from actors.cluster import ClusterInfo
from actors.weights import WeightChecksumError, WeightStore, checksum_of, load_weights, start_weight_store


def weights(seed: int, size: int = 200_000) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


@pytest.fixture
def store(ray_session: ClusterInfo) -> WeightStore:
    """In this process; its buffers lie in Ray's object store all the same."""
    return WeightStore(keep=2)


@pytest.fixture
def store_actor(ray_session: ClusterInfo) -> Iterator[ray.actor.ActorHandle]:
    handle = start_weight_store(keep=2)
    yield handle
    ray.kill(handle)


def test_published_weights_arrive_unchanged_and_without_a_copy(store):
    published = weights(0)
    checksum = store.publish(0, 0, published)
    ticket = store.current()
    loaded = load_weights(ticket)
    assert (ticket.version, ticket.iteration, ticket.checksum) == (0, 0, checksum)
    assert checksum == checksum_of(published)
    np.testing.assert_array_equal(loaded, published)
    assert not (loaded.flags.owndata or loaded.flags.writeable), "a view of the object store"


def test_tampered_weights_are_refused(store):
    store.publish(4, 0, weights(0))
    ticket = store.current()
    corrupted = load_weights(ticket).copy()
    corrupted[17] = np.nextafter(corrupted[17], np.float32(np.inf))  # one bit of one weight
    with pytest.raises(WeightChecksumError, match="version 4"):
        load_weights(dataclasses.replace(ticket, refs=[ray.put(corrupted)]))


def test_a_resumed_run_may_publish_a_lower_version(store):
    for version in range(5):
        store.publish(version, version, weights(version))
    assert store.versions() == [3, 4], "only the newest are kept"
    store.publish(2, 2, weights(99))
    assert store.versions() == [2], "newer ones belong to a lost future"
    ticket = store.current()
    assert (ticket.version, ticket.iteration) == (2, 2)
    np.testing.assert_array_equal(load_weights(ticket), weights(99))


def test_there_are_no_weights_before_the_first_publication(store):
    with pytest.raises(RuntimeError, match="no weights were published yet"):
        store.current()
    store.publish(7, 3, weights(1))
    ticket = store.current()
    assert (ticket.version, ticket.iteration) == (7, 3)


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        (np.zeros((2, 3), np.float32), "flat float32 buffer, not float32 of shape"),
        (np.zeros(3, np.float16), "not float16"),
        (np.array([0, np.nan], np.float32), "NaN or infinity"),
    ],
)
def test_bad_weights_are_not_published(store, flat, message):
    with pytest.raises(ValueError, match=message):
        store.publish(0, 0, flat)
    assert store.versions() == []


@ray.remote(num_cpus=0, max_restarts=0)
class Learner:
    def publish(self, store: ray.actor.ActorHandle) -> int:
        ray.get(store.publish.remote(1, 1, weights(5)))
        return os.getpid()


def test_weights_outlive_the_learner_that_published_them(store_actor):
    learner = Learner.remote()
    os.kill(ray.get(learner.publish.remote(store_actor)), signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(learner.publish.remote(store_actor))
    np.testing.assert_array_equal(load_weights(ray.get(store_actor.current.remote())), weights(5))


@ray.remote(num_cpus=0)
def load_elsewhere(ticket) -> tuple[int, str]:
    return ticket.version, checksum_of(load_weights(ticket))


def test_a_ticket_in_flight_outlives_its_version_in_the_store(store_actor):
    ray.get(store_actor.publish.remote(0, 0, weights(0)))
    old = ray.get(store_actor.current.remote())
    for version in range(1, 5):
        ray.get(store_actor.publish.remote(version, version, weights(version)))
    time.sleep(0.2)
    assert ray.get(load_elsewhere.remote(old)) == (0, old.checksum)
