"""From the names in a config to torch's devices and dtypes."""

import os

import torch

NO_GPU = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that hide every GPU."""


def resolve_device(name: str) -> torch.device:
    """ "auto" is the GPU where this process sees one, else the CPU.

    Raises:
        ValueError: "cuda" is asked for where there is none, or "auto" where a GPU was given that torch cannot use.
    """
    if name == "auto":
        # Ray names here the GPUs that an actor reserved; to compute on the CPU beside them would go unnoticed.
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if given not in NO_GPU and not torch.cuda.is_available():
            raise ValueError(
                f"CUDA_VISIBLE_DEVICES={given} gives this process a GPU that torch {torch.__version__} cannot use; "
                "install a CUDA build of torch that fits the driver, or set model.device=cpu"
            )
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "model.device is 'cuda', but this process sees no GPU; give the actors num_gpus above 0 and install a CUDA "
            "build of torch, or set model.device=auto"
        )
    return torch.device(name)


def resolve_dtype(name: str) -> torch.dtype:
    """The torch dtype of "float32", "float16" or "bfloat16"."""
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]
