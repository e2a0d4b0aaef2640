"""The workers that a fleet has: asked for, replaced and ended, and which go first where there are too many."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from actors.lease_table import LeaseTable, Worker

logger = logging.getLogger(__name__)


class WorkerPool:
    """Between a minimum and a maximum of workers, of which each is here from when it is asked for until it is removed.

    Attributes:
        actor_options: Ray options of each worker.
        min_workers: how many stay however little there is to do.
        max_workers: how many there are at most.
        has_grown: whether workers above the minimum are wanted; otherwise one that goes is replaced up to that alone.
        restarts: workers started in the place of another.
    """

    def __init__(
        self,
        name: str,
        actor_class: type,
        actor_args: Sequence[Any],
        actor_options: dict[str, Any],
        min_workers: int,
        max_workers: int,
        leases: LeaseTable,
        on_start: Callable[[Worker], None],
    ) -> None:
        """Start nobody yet.

        Args:
            name: what worker ids begin with.
            actor_class: plain class of the workers.
            actor_args: arguments of its constructor.
            actor_options: Ray options of each worker.
            min_workers: how many stay however little there is to do.
            max_workers: how many there are at most.
            leases: where the leases of a worker end when it is removed.
            on_start: called with each worker that is started.
        """
        self._name = name
        self._actor_class: Any = ray.remote(actor_class)
        self._actor_args = tuple(actor_args)
        self.actor_options = actor_options
        self.min_workers = min_workers
        self.max_workers = max_workers
        self._leases = leases
        self._on_start = on_start
        self._numbers = itertools.count()
        self._workers: dict[str, Worker] = {}
        self._asked_for = 0
        self.has_grown = False
        self.restarts = 0

    def __len__(self) -> int:
        """Workers, also those that are not ready and those that leave."""
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        """Workers in the order in which they were asked for; some may be removed meanwhile."""
        return iter(list(self._workers.values()))

    def __contains__(self, worker_id: str) -> bool:
        """Whether a worker is here."""
        return worker_id in self._workers

    def get(self, worker_id: str) -> Worker | None:
        """The worker, None where it was removed."""
        return self._workers.get(worker_id)

    @property
    def serving(self) -> int:
        """Workers that can be leased."""
        return sum(worker.serving for worker in self)

    @property
    def pending(self) -> int:
        """Workers that are starting, or wait for room in the cluster."""
        return sum(not worker.ready for worker in self)

    @property
    def idle(self) -> list[Worker]:
        """Workers that stay and serve nobody, ready or not."""
        return [worker for worker in self if not (worker.leaving or worker.lease_expiry)]

    def ask_for(self, count: int) -> None:
        """Start workers until there are `count`, the maximum at most."""
        self.ask_for_more(count - self._asked_for)

    def ask_for_more(self, count: int) -> None:
        """Start `count` workers, as far as the maximum allows."""
        for _ in range(min(count, self.max_workers - self._asked_for)):
            self._start()
            self._asked_for += 1

    def replace(self) -> None:
        """Start a worker in the place of one that is gone, or leaves; none above the minimum unless it `has_grown`."""
        if not self.has_grown and self._asked_for > self.min_workers:
            self._asked_for -= 1
            return
        self.restarts += 1
        self._start()

    def remove(self, worker: Worker) -> None:
        """End a worker and its leases."""
        del self._workers[worker.worker_id]
        for lease_id in list(worker.lease_expiry):
            self._leases.end(lease_id)
        # A worker that only seems dead (a broken connection) would keep its GPU.
        ray.kill(worker.actor)

    def end_surplus(self, workers: Sequence[Worker], reason: str) -> int:
        """End those of `workers` that are above the minimum, first the newest that is not ready; return how many."""
        surplus = max(0, self._asked_for - self.min_workers)
        # One that has not come up, or pauses after it failed, may never do so: the minimum is to be ready.
        spare = max(0, self.serving - self.min_workers)
        ended = [w for w in reversed(workers) if not w.ready] + [w for w in workers if w.ready][:spare]
        for worker in ended[:surplus]:
            say(logging.INFO, worker, reason)
            self._asked_for -= 1
            self.remove(worker)
        return len(ended[:surplus])

    def _start(self) -> None:
        worker_id = f"{self._name}-{next(self._numbers)}"
        # Lost workers are replaced here, for Ray would restart them silently with their initial state.
        actor = self._actor_class.options(**self.actor_options, max_restarts=0, max_task_retries=0).remote(
            *self._actor_args
        )
        worker = Worker(worker_id, actor)
        self._workers[worker_id] = worker
        self._on_start(worker)


def say(level: int, worker: Worker, text: str) -> None:
    """Log a line about one worker."""
    logger.log(level, "%s", text, extra={"worker": worker.worker_id})
