"""The noise schedule of a Stable Diffusion pipeline, as DDIM follows it."""

from diffusers import DDIMScheduler


def load_scheduler(path: str, revision: str | None = None) -> DDIMScheduler:
    """A DDIM scheduler of the schedule of the `StableDiffusionPipeline` directory or hub id `path`, at `revision`.

    `StableDiffusionPipeline` turns `clip_sample` off and sets `steps_offset` to 1, whatever the scheduler's file says;
    files of other samplers do not have the first, and DDIM's own default would clip.
    """
    scheduler: DDIMScheduler = DDIMScheduler.from_pretrained(
        path, subfolder="scheduler", revision=revision, clip_sample=False, steps_offset=1
    )
    return scheduler
