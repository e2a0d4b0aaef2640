"""A learner worker's side of the rollouts: begun with a policy, finished when the records are wanted."""

import concurrent.futures
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipeline.rollout_policy import RolloutPolicy

WATCH_INTERVAL_S = 2.0


class Rollouts:
    """A worker's share of the records of one iteration after the other, rolled out while it does something else.

    All workers begin the same iterations: the dataset is executed afresh each time, once all of them have asked.
    """

    def __init__(
        self,
        shard: Any,
        publish: Callable[[RolloutPolicy, int], None],
        watch: Callable[[], None],
        next_policy: RolloutPolicy | None = None,
    ) -> None:
        """Take Ray Train's shard of the dataset.

        Args:
            publish: makes a policy the one that an iteration is rolled out with.
            watch: called every now and then while rollouts are waited for.
            next_policy: as a checkpoint has it.
        """
        self._shard = shard
        self._publish = publish
        self._watch = watch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._records: Future[pa.Table] | None = None
        self.next_policy = next_policy
        """What the next iteration is rolled out with, where that is not the learner's newest policy; checkpoints keep
        it."""

    @property
    def begun(self) -> bool:
        """Whether an iteration was begun and its records were not fetched yet."""
        return self._records is not None

    def begin(self, policy: RolloutPolicy, iteration: int) -> None:
        """Let the rollouts of `iteration` begin."""
        assert not self.begun, "the weight store holds the policy of one iteration at a time"
        self._publish(policy, iteration)
        self._records = self._thread.submit(self._fetch)

    def finish(self) -> pa.Table:
        """Wait for this worker's share of the records that were begun."""
        assert self._records is not None, "begin() comes first"
        while not self._records.done():
            concurrent.futures.wait([self._records], timeout=WATCH_INTERVAL_S)
            self._watch()
        records = self._records.result()
        self._records = None
        return records

    def _fetch(self) -> pa.Table:
        blocks = [block for block in self._shard.iter_batches(batch_size=None, batch_format="pyarrow") if len(block)]
        return pa.concat_tables(blocks)
