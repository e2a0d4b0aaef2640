"""Sums over all learner workers, and over nothing where there is only one."""

import torch.distributed as dist
from torch import Tensor


def sum_over_workers(values: Tensor) -> Tensor:
    """The sum of `values` over the workers of the process group, in place; unchanged outside one."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values
