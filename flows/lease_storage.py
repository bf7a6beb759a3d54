"""Concurrency leases that survive jumps of the server's clock.

A run of a deployment with a concurrency limit holds a lease. Prefect renews the lease while the run's process lives,
and revokes the lease after its time, by the wall clock: when a host's clock is set ahead, all leases expire at once,
and the next renewal crashes the run. Here a lease has expired once it has looked expired, without a renewal, for as
long as Prefect grants it, on a monotonic clock.
"""

import time
from uuid import UUID

from prefect.server.concurrency.lease_storage import filesystem

GRACE_SECONDS = 300  # Prefect grants 300 seconds and renews after 225

# By folder and lease, since Prefect creates a storage for each request: the lease's expiration time, and when the
# lease was first seen as expired.
_first_seen: dict[tuple[str, UUID], tuple[str, float]] = {}


class ConcurrencyLeaseStorage(filesystem.ConcurrencyLeaseStorage):
    """Leases in files, as in the parent class. Prefect finds this class by its name."""

    async def read_expired_lease_ids(self, limit: int = 100) -> list[UUID]:
        """Return the leases that have looked expired for ``GRACE_SECONDS`` without a renewal."""
        candidates = await super().read_expired_lease_ids(limit)
        expirations = await self._load_expiration_index()
        return [lease_id for lease_id in candidates if self._has_expired(lease_id, expirations.get(str(lease_id), ""))]

    async def revoke_lease(self, lease_id: UUID) -> None:
        """Remove a lease, when its run ends or the lease has expired."""
        _first_seen.pop((str(self.storage_path), lease_id), None)
        await super().revoke_lease(lease_id)

    def _has_expired(self, lease_id: UUID, expiration: str) -> bool:
        key, now = (str(self.storage_path), lease_id), time.monotonic()
        if _first_seen.get(key, ("", 0.0))[0] != expiration:
            _first_seen[key] = (expiration, now)
        return now - _first_seen[key][1] >= GRACE_SECONDS
