"""The prompts of a run, read once before its actors start; a resumed run finds them in its folder."""

import logging
from pathlib import Path

from actors.tables import explained_reading, read_table
from pipeline.data_files import locate_data, require_text_column
from pipeline.prompt_sets import PromptSets, clean_prompts, in_order_of_hash, load_prompt_sets, split_prompts
from pipeline.prompt_settings import PromptColumnSettings, PromptSettings, PromptSource
from pipeline.prompts import load_held_out_prompts, load_train_prompts

logger = logging.getLogger(__name__)


def prompts_of_run(settings: PromptSettings, run_directory: Path) -> PromptSets:
    """The prompts in the run folder, where there are any, else those of the sources.

    Raises:
        ValueError: a source cannot be read or holds no prompt, or the folder's prompts were changed.
    """
    kept = load_prompt_sets(run_directory)
    return read_prompt_sets(settings) if kept is None else kept


def read_prompt_sets(settings: PromptSettings) -> PromptSets:
    """Read the sources; columns of data sets by Ray Data, on the connected cluster.

    Raises:
        ValueError: a source cannot be read or holds no prompt.
    """
    train = settings.train
    prompts = load_train_prompts(train) if isinstance(train, str) else read_prompt_column(train, "train")
    if settings.split is not None:
        return split_prompts(prompts, settings.split)
    assert settings.held_out is not None, "the settings choose held-out prompts where no split does"
    held_out = read_held_out(settings.held_out)
    return PromptSets(prompts, held_out if isinstance(settings.held_out, str) else in_order_of_hash(held_out))


def warn_of_prompts_on_both_sides(sets: PromptSets, settings: PromptSettings) -> None:
    """Say where sources that are named as different overlap."""
    if settings.holds_out and (both := sets.on_both_sides()):
        logger.warning(
            "%d of the %d held-out prompts are trained on too, such as %r; the evaluation counts them as held out",
            len(both),
            len(sets.held_out),
            both[0],
        )


def read_held_out(source: PromptSource) -> list[str]:
    """The prompts of an evaluation; those of a data set by Ray Data, on the connected cluster.

    Raises:
        ValueError: the source cannot be read or holds no prompt.
    """
    if isinstance(source, str):
        return load_held_out_prompts(source)
    return read_prompt_column(source, "held_out")


def read_prompt_column(source: PromptColumnSettings, role: str) -> list[str]:
    """The prompts of a column, cleaned; `role` is the setting's name, train or held_out.

    Raises:
        ValueError: as `require_text_column`, or a file cannot be read, or none of its rows holds a prompt.
    """
    files = locate_data(source.path)
    require_text_column(files, source.column, f"prompts.{role}.column")
    with explained_reading(files):
        texts = [row[source.column] for row in read_table(files, [source.column]).iter_rows()]
    return clean_prompts(texts, f"column {source.column!r} of {source.path!r}")
