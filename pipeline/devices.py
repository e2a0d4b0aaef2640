"""From the names in a config to torch's devices and dtypes."""

import torch


def resolve_device(name: str) -> torch.device:
    """ "auto" is the GPU where this process sees one, else the CPU.

    Raises:
        ValueError: "cuda" is asked for where there is none.
    """
    if name == "auto":
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
