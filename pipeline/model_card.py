"""The model card that lies beside an exported adapter."""

from pipeline.config import RunSettings
from pipeline.config_loading import dump_settings
from pipeline.method_settings import PairMethodSettings


def adapter_card(settings: RunSettings, policy_version: int, evaluation_table: str) -> str:
    """README.md of an adapter directory: what it is, how it was made, how to load it, what it scored."""
    method = settings.method.title
    return f"""---
base_model: {settings.model.path}
library_name: diffusers
tags: [lora, text-to-image, {method.lower()}]
---

# {settings.name}

A LoRA adapter of `{settings.model.path}`, aligned by {method} ({settings.method.paper}) {_aligned_with(settings)}:
{policy_version} iterations of {settings.rollout.trajectories} trajectories, rank
{settings.lora.rank}, alpha {settings.lora.alpha}, sampled with {settings.sampling.num_steps} DDIM steps, eta
{settings.sampling.eta}, guidance scale {settings.sampling.guidance_scale}.

```python
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained({_place(settings)}, torch_dtype=torch.float32)
# Other samplers ignore eta. What their files leave open, DDIM would fill with defaults that are not Stable Diffusion's.
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, steps_offset=1)
pipeline.load_lora_weights("path/to/this/directory")
image = pipeline("your prompt", {_sampling_arguments(settings)}).images[0]
image.save("image.png")
```

## {_evaluation_title(settings)}

{evaluation_table}

## Configuration

```yaml
{dump_settings(settings).rstrip()}
```
"""


def _place(settings: RunSettings) -> str:
    """Where a pipeline of diffusers finds the model that the run had."""
    model = settings.model
    return f'"{model.path}"' if model.revision is None else f'"{model.path}", revision="{model.revision}"'


def _sampling_arguments(settings: RunSettings) -> str:
    """How a pipeline of diffusers samples as the run did."""
    sampling = settings.sampling
    return f"num_inference_steps={sampling.num_steps}, guidance_scale={sampling.guidance_scale}, eta={sampling.eta}"


def _evaluation_title(settings: RunSettings) -> str:
    return "Held-out evaluation" if settings.holds_out else "Evaluation on the prompts trained on"


def _aligned_with(settings: RunSettings) -> str:
    if isinstance(settings.method, PairMethodSettings):
        return f"with the pairs of images of `{settings.method.data}`"
    return "with the reward " + " + ".join(
        f"`{label}`" if reward.weight == 1 else f"{reward.weight:g} × `{label}`"
        for label, reward in zip(settings.trained_reward_labels, settings.rewards, strict=True)
    )
