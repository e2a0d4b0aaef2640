"""Of which iteration the records are that the learner is given, and how old the policy is that made them."""

import pyarrow as pa
import pyarrow.compute as pc


class StaleRecordsError(RuntimeError):
    """Records of a policy older than `rollout.max_staleness` allows, or of one that is not published yet."""


class MixedRecordsError(RuntimeError):
    """Records of another iteration: a node that held some was lost when the next one had begun. A new attempt helps."""


def check_iteration(table: pa.Table, iteration: int) -> None:
    """Refuse records that were made again for a later iteration.

    Raises:
        MixedRecordsError: a record of `table` is not of `iteration`.
    """
    found = pc.min_max(table["iteration"]).as_py()
    if (found["min"], found["max"]) != (iteration, iteration):
        raise MixedRecordsError(
            f"the learner was given records of iterations {found['min']} to {found['max']} for iteration {iteration}"
        )


def policy_age(table: pa.Table, policy_version: int, max_staleness: int) -> int:
    """Versions between the learner's policy and the oldest that made a record of `table`.

    Raises:
        StaleRecordsError: a record is older than `max_staleness` versions, or newer than the learner's policy.
    """
    versions = pc.min_max(table["policy_version"]).as_py()
    age = policy_version - versions["min"]
    if age > max_staleness or versions["max"] > policy_version:
        raise StaleRecordsError(
            f"the learner at policy version {policy_version} was given records of versions {versions['min']} to "
            f"{versions['max']}, and rollout.max_staleness={max_staleness}"
        )
    return int(age)
