"""Makes the demo's models from nothing: autoencoder, held-out judge, preference reward, denoiser, and their cards.

    python -m jobs.make_demo --output models --work runs/make_demo

A run that was interrupted continues where it stopped; finished stages are skipped. After the autoencoder, the
judge, the reward and the refined decoder train in a second process beside the denoiser.
"""

import argparse
import multiprocessing
import os
import threading
from collections.abc import Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from pipeline.demo.stages import (
    Workshop,
    assemble,
    make_clip,
    make_decoder,
    make_denoiser,
    make_judge,
    make_vae,
    measure,
)
from pipeline.run_lock import held_alone

STAGES = {
    "vae": make_vae,
    "judge": make_judge,
    "clip": make_clip,
    "decoder": make_decoder,
    "denoiser": make_denoiser,
    "assemble": assemble,
    "measure": measure,
}
SIDE_STAGES = ("judge", "clip", "decoder")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.make_demo", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("models"), help="folder that receives the models")
    parser.add_argument("--work", type=Path, default=Path("runs/make_demo"), help="folder of checkpoints")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="stages to run, in order")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps and data; below 1 for trials")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2, help="2: train independent stages together")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="threads per process")
    return parser.parse_args(arguments)


def start_side_stages(workshop: Workshop, threads: int) -> SpawnProcess:
    """Start the judge's, the reward's and the decoder's training as a second process of this job."""
    process = multiprocessing.get_context("spawn").Process(target=_make_side_stages, args=(workshop, threads))
    process.start()
    return process


def _make_side_stages(workshop: Workshop, threads: int) -> None:
    threading.Thread(target=_end_with_the_first_process, daemon=True).start()
    torch.set_num_threads(threads)
    for stage in SIDE_STAGES:
        STAGES[stage](workshop)


def _end_with_the_first_process() -> None:
    """A second process that outlived a killed job would write the checkpoints of the job that continues it."""
    first = multiprocessing.parent_process()
    assert first is not None
    first.join()
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen stages.

    Raises:
        ValueError: the scale is not positive, the folder of checkpoints is that of a run of another one, or another
            process is at work in it.
        RuntimeError: the second process failed.
    """
    options = parse_arguments(arguments)
    if options.scale <= 0:
        raise ValueError(f"--scale must be positive, not {options.scale}")
    with held_alone(options.work):
        make(options)


def make(options: argparse.Namespace) -> None:
    """Run the chosen stages in a folder of checkpoints that nobody else works in.

    Raises:
        ValueError, RuntimeError: as `main`.
    """
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    workshop = Workshop(options.output, options.work, torch.device(device), options.scale)
    workshop.refuse_another_scale()
    both = options.processes == 2 and "denoiser" in options.stages
    torch.set_num_threads(options.threads)
    if "vae" in options.stages:
        torch.set_num_threads(options.threads * options.processes)
        make_vae(workshop)
        torch.set_num_threads(options.threads)
    side = [stage for stage in SIDE_STAGES if stage in options.stages]
    process = start_side_stages(workshop, options.threads) if both and len(side) == len(SIDE_STAGES) else None
    try:
        for stage in () if process else side:
            STAGES[stage](workshop)
        if "denoiser" in options.stages:
            make_denoiser(workshop)
        if process is not None:
            process.join()
            if process.exitcode != 0:
                raise RuntimeError(f"the second process, which trains {' and '.join(SIDE_STAGES)}, failed; see above")
    finally:
        if process is not None:
            process.terminate()
    for stage in ("assemble", "measure"):
        if stage in options.stages:
            STAGES[stage](workshop)


if __name__ == "__main__":
    main()
