"""What all learner workers know together, where there is more than one."""

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")


def sum_over_workers(values: Tensor) -> Tensor:
    """The sum of `values` over the workers of the process group, in place; unchanged outside one."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def gather_over_workers(item: Item) -> list[Item]:
    """The `item` of every worker of the process group, by rank; only one's own outside a group."""
    if not (dist.is_available() and dist.is_initialized()):
        return [item]
    items: list[Item] = [item] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items
