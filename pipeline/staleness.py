"""How old the policy is that made the records the learner is given."""

import pyarrow as pa
import pyarrow.compute as pc


class StaleRecordsError(RuntimeError):
    """Records of a policy older than `rollout.max_staleness` allows, or of one that is not published yet."""


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
