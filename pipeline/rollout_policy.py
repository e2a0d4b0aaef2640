"""The policy that an iteration's rollouts are made with; a checkpoint keeps it where it is older than the learner's."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from pipeline.adapter import flatten_adapter
from pipeline.learning import Learner
from pipeline.weighting import Normalisation

ROLLOUT_POLICY_FILE = "rollout_policy.safetensors"


@dataclass(frozen=True)
class RolloutPolicy:
    """What is published.

    Attributes:
        version: how often weights were published before.
        adapter: (parameters,) float32.
        normalisation: how several rewards are summed; None where there is one.
    """

    version: int
    adapter: NDArray[np.float32]
    normalisation: Normalisation | None

    @classmethod
    def of(cls, learner: Learner, version: int) -> "RolloutPolicy":
        """The learner's policy as it is now, and how it sums rewards now."""
        return cls(version, flatten_adapter(learner.policy), learner.normaliser.current)

    def to_bytes(self) -> bytes:
        """The content of its file in a checkpoint."""
        arrays = {"version": np.array(self.version), "adapter": self.adapter}
        if self.normalisation is not None:
            terms = {
                "weights": self.normalisation.weights,
                "centres": self.normalisation.centres,
                "scales": self.normalisation.scales,
            }
            arrays |= {name: np.array(values, dtype=np.float64) for name, values in terms.items()}
        return save(arrays)

    @classmethod
    def from_bytes(cls, content: bytes) -> "RolloutPolicy":
        """Read what `to_bytes` made."""
        arrays = load(content)
        normalisation = None
        if "weights" in arrays:
            weights, centres, scales = (tuple(arrays[name].tolist()) for name in ("weights", "centres", "scales"))
            normalisation = Normalisation(weights, centres, scales)
        return cls(int(arrays["version"]), arrays["adapter"], normalisation)
