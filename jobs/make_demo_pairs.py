"""Makes preference pairs of the demo world for Diffusion-DPO: `python jobs/make_demo_pairs.py --output FOLDER`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.preference_pairs import DEMO_PAIRS

ROWS_PER_FILE = 1024


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEMO_PAIRS, help="folder that receives the Parquet")
    parser.add_argument("--pairs", type=int, default=4096, help="number of pairs")
    parser.add_argument("--seed", type=int, default=0, help="which pairs")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pairs, whole files under their names or nothing."""
    from pipeline.demo.pairs import demo_pairs
    from pipeline.parquet_file import write_parquet

    options = parse_arguments(arguments)
    if options.pairs < 1:
        sys.exit(f"error: --pairs is {options.pairs}; make at least one")
    if options.output.exists() and any(options.output.iterdir()):
        sys.exit(f"error: {options.output} is not empty; name a folder of its own, whose files are one data set")
    table = demo_pairs(options.pairs, options.seed)
    for start in range(0, options.pairs, ROWS_PER_FILE):
        file = options.output / f"pairs_{start // ROWS_PER_FILE:04d}.parquet"
        write_parquet(table.slice(start, ROWS_PER_FILE), file)
    print(f"{options.pairs} pairs in {options.output}")


if __name__ == "__main__":
    main()
