"""Makes preference pairs of the demo world for Diffusion-DPO: `python jobs/make_demo_pairs.py --output FOLDER`.

The preferred one follows its prompt and the other does not; with `--reward` both do, and the reward prefers one.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.preference_pairs import DEMO_PAIRS

ROWS_PER_FILE = 1024


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEMO_PAIRS, help="folder that receives the Parquet")
    parser.add_argument("--pairs", type=int, default=4096, help="number of pairs")
    parser.add_argument("--seed", type=int, default=0, help="which pairs")
    parser.add_argument("--reward", help="name of the reward that prefers one of two right pictures, as reward.name")
    parser.add_argument("--reward-path", help="its checkpoint, as reward.path")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pairs, whole files under their names or nothing."""
    import torch

    from pipeline.demo.pairs import demo_pairs, rewarded_pairs
    from pipeline.parquet_file import write_parquet
    from pipeline.rewards import load_reward

    options = parse_arguments(arguments)
    if options.reward_path is not None and options.reward is None:
        sys.exit(f"error: --reward-path is {options.reward_path} without a --reward; name the reward")
    if options.pairs < 1:
        sys.exit(f"error: --pairs is {options.pairs}; make at least one")
    if options.output.exists() and any(options.output.iterdir()):
        sys.exit(f"error: {options.output} is not empty; name a folder of its own, whose files are one data set")
    if options.reward is None:
        table = demo_pairs(options.pairs, options.seed)
    else:
        try:
            reward = load_reward(options.reward, options.reward_path, torch.device("cpu"), torch.float32)
        except ValueError as error:
            sys.exit(f"error: {error}")
        table = rewarded_pairs(options.pairs, options.seed, reward)
    for start in range(0, options.pairs, ROWS_PER_FILE):
        file = options.output / f"pairs_{start // ROWS_PER_FILE:04d}.parquet"
        write_parquet(table.slice(start, ROWS_PER_FILE), file)
    print(f"{options.pairs} pairs in {options.output}")


if __name__ == "__main__":
    main()
