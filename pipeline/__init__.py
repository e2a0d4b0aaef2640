"""The method: plain PyTorch and diffusers, without Ray."""
