"""Concurrency leases: a clock that is set ahead revokes no lease that is renewed, and a lease of a dead run ends."""

import asyncio
from datetime import timedelta

import pytest
from prefect.server.concurrency.lease_storage import get_concurrency_lease_storage
from prefect.settings import PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE, temporary_settings

from flows import lease_storage


@pytest.fixture
def seconds(monkeypatch):
    """The monotonic clock of the storage, which a test sets."""
    clock = [1000.0]
    monkeypatch.setattr(lease_storage.time, "monotonic", lambda: clock[0])
    return clock


@pytest.fixture
def storage(tmp_path):
    return lease_storage.ConcurrencyLeaseStorage(tmp_path)


def create_expired_lease(storage):
    """A lease whose time is over, as all leases are once the clock is set ahead."""
    return asyncio.run(storage.create_lease([], timedelta(seconds=-86_400))).id


def read_expired(storage):
    return asyncio.run(storage.read_expired_lease_ids())


def test_an_expired_lease_is_revoked_after_a_grace_period(storage, seconds):
    lease = create_expired_lease(storage)
    assert read_expired(storage) == []
    seconds[0] += lease_storage.GRACE_SECONDS - 1
    assert read_expired(storage) == []
    seconds[0] += 1
    assert read_expired(storage) == [lease]
    assert read_expired(lease_storage.ConcurrencyLeaseStorage(storage.storage_path)) == [lease]  # of another request


def test_a_renewal_starts_the_grace_period_again(storage, seconds):
    lease = create_expired_lease(storage)
    for _ in range(4):
        assert read_expired(storage) == []
        seconds[0] += lease_storage.GRACE_SECONDS - 1
        assert asyncio.run(storage.renew_lease(lease, timedelta(seconds=-86_400)))


def test_a_revoked_lease_leaves_nothing(storage, seconds):
    lease = create_expired_lease(storage)
    assert read_expired(storage) == []
    asyncio.run(storage.revoke_lease(lease))
    assert (str(storage.storage_path), lease) not in lease_storage._first_seen
    assert asyncio.run(storage.read_lease(lease)) is None


def test_prefect_finds_the_storage_by_the_modules_name():
    with temporary_settings({PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE: lease_storage.__name__}):
        assert isinstance(get_concurrency_lease_storage(), lease_storage.ConcurrencyLeaseStorage)
