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
    parser.add_argument("--output", type=Path, help=f"folder that receives the Parquet; {DEMO_PAIRS} by default")
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
    from pipeline.rewards import load_reward, reward_class
    from pipeline.rewards.base import RewardError

    options = parse_arguments(arguments)
    if options.reward_path is not None and options.reward is None:
        sys.exit(f"error: --reward-path is {options.reward_path} without a --reward; name the reward")
    if options.pairs < 1:
        sys.exit(f"error: --pairs is {options.pairs}; make at least one")
    if options.reward is not None and options.output is None:
        sys.exit(
            f"error: --reward {options.reward} without --output; name a folder, for {DEMO_PAIRS} is of other pairs"
        )
    output = options.output or DEMO_PAIRS
    if output.exists() and any(output.iterdir()):
        sys.exit(f"error: {output} is not empty; name a folder of its own, whose files are one data set")
    if options.reward is None:
        table = demo_pairs(options.pairs, options.seed)
    else:
        try:
            if reward_class(options.reward).held_out_only:
                raise ValueError(f"--reward {options.reward} is a held-out judge, which must not be trained on")
            reward = load_reward(options.reward, options.reward_path, torch.device("cpu"), torch.float32)
            table = rewarded_pairs(options.pairs, options.seed, reward)
        except (ValueError, RewardError) as error:
            sys.exit(f"error: {error}")
    for start in range(0, options.pairs, ROWS_PER_FILE):
        file = output / f"pairs_{start // ROWS_PER_FILE:04d}.parquet"
        write_parquet(table.slice(start, ROWS_PER_FILE), file)
    print(f"{options.pairs} pairs in {output}")


if __name__ == "__main__":
    main()
