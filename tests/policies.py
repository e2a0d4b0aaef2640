"""Policies for tests."""

import torch

from pipeline.config import RunSettings
from pipeline.policy import Policy


def make_policy(settings: RunSettings, adapter_scale: float = 0.0) -> Policy:
    """A run's policy; with a scale, its adapter is moved away from the reference by seeded noise of that deviation."""
    policy = Policy.load(settings.model, settings.lora, settings.sampling, settings.seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in policy.adapter_parameters().values():
            value.add_(adapter_scale * torch.randn(value.shape, generator=generator))
    return policy
