"""Base against aligned: intervals over prompts, aspects where they are stated, tables and pictures."""

import json

import numpy as np
import pytest
from drawn import drawn_images

from pipeline.evaluation.evaluation import Evaluation, compare_drawn
from pipeline.evaluation.measured import ImageMeasures, join_measures
from pipeline.evaluation.pictures import (
    MOST_CHANGED_PAIRS,
    PAIRS_OF_A_KIND,
    change_pictures,
    chosen_pairs,
    most_changed_picture,
)
from pipeline.evaluation.prompt_table import pair_table, prompt_table
from pipeline.evaluation.tables import evaluation_text
from pipeline.report.evaluation_file import RunEvaluation
from pipeline.statistics import compare_paired

PROMPTS = ["a cat", "a dog"] * 3
ASPECTS = np.array([[1.0, np.nan], [0.0, 1.0]] * 3)


@pytest.fixture
def evaluation() -> Evaluation:
    base = drawn_images(np.array([[0, 1], [1, 1], [2, 1], [3, 1], [4, 1], [5, 1]]), PROMPTS, aspects=ASPECTS)
    aligned = drawn_images(np.array([[1, 1], [1, 0], [3, 1], [3, 0], [5, 1], [4, 2]]), PROMPTS, aspects=1 - ASPECTS)
    return compare_drawn(base, aligned, ["clip", "jpeg"], ["judge: shape", "judge: colour"], seed=3)


def test_images_of_a_prompt_are_resampled_together(evaluation):
    row = evaluation.rewards["clip"]
    assert row.difference == pytest.approx(np.mean([1, 0, 1, 0, 1, -1])) and row.pairs == 6
    assert row.win_rate == pytest.approx((3 + 0.5 * 2) / 6)
    # Two prompts, whose mean differences are 1 and -1/3: a resample is one of three means.
    assert (row.low, row.high) == pytest.approx((-1 / 3, 1))
    apart = compare_paired([0, 1, 2, 3, 4, 5], [1, 1, 3, 3, 5, 4], seed=3)
    assert (apart.low, apart.high) != (row.low, row.high)


def test_an_aspect_is_compared_where_a_prompt_states_it(evaluation):
    assert evaluation.aspects["judge: shape"].pairs == 6
    colour = evaluation.aspects["judge: colour"]
    assert (colour.pairs, colour.base_mean, colour.aligned_mean) == (3, 1.0, 0.0)


def test_the_pictures_and_changes_are_of_the_first_reward_or_of_the_sum(evaluation):
    assert evaluation.changes.tolist() == [1, 0, 1, 0, 1, -1]
    sums = ("weighted sum", np.zeros(6), np.arange(6.0))
    summed = compare_drawn(evaluation.base, evaluation.aligned, ["clip", "jpeg"], [], 3, sums)
    assert list(summed.rewards) == ["weighted sum", "clip", "jpeg"]
    assert summed.changes.tolist() == list(range(6))


def test_one_prompt_has_an_interval_over_its_images():
    base, aligned = (drawn_images(np.arange(4.0) * factor, ["a cat"] * 4) for factor in (1, 2))
    row = compare_drawn(base, aligned, ["clip"], [], 0).rewards["clip"]
    assert row.low < row.difference < row.high


def test_sets_of_other_images_are_refused():
    base, aligned = drawn_images(np.zeros(2), ["a", "b"]), drawn_images(np.zeros(3), ["a", "b", "a"])
    with pytest.raises(ValueError, match="2 images of the base model and 3 of the aligned one do not pair up: draw"):
        compare_drawn(base, aligned, ["clip"], [], 0)


def test_a_batch_that_came_back_incomplete_is_refused():
    whole = drawn_images(np.zeros(2), ["a", "b"])
    parts = {name: getattr(whole, name) for name in ("scores", "aspects", "statistics", "embeddings", "images")}
    short = ImageMeasures(**parts | {"images": whole.images[:1], "scores": whole.scores[:1]})
    with pytest.raises(ValueError, match="a batch of 2 prompts came back with 1 scores, 1 images: a reward must"):
        join_measures([short], [["a", "b"]], [np.zeros(2, np.float32)])
    joined = join_measures([ImageMeasures(**parts)] * 2, [["a", "b"], ["c", "d"]], [np.zeros(2, np.float32)] * 2)
    assert joined.prompts == ("a", "b", "c", "d") and joined.images.shape == (4, 8, 8, 3)


def test_the_report_reads_what_is_written(evaluation):
    read = RunEvaluation.model_validate_json(json.dumps(evaluation.as_json()))
    assert list(read.rewards) == ["clip", "jpeg", "judge: shape", "judge: colour"]
    assert read.rewards["clip"].low == evaluation.rewards["clip"].low
    assert read.hacking["drift"].base == 0 and read.verdict == evaluation.verdict
    assert list(evaluation.rewards_as_json()) == ["clip", "jpeg"]


def test_the_text_has_every_table_and_the_verdict(evaluation):
    rewards, aspects, hacking, told = evaluation_text(evaluation).split("\n\n")
    assert rewards.splitlines()[2] == "| clip | 2.5000 | 2.8333 | +0.3333 | [-0.3333, +1.0000] | 0.667 | 6 |"
    assert [line.split(" | ")[0] for line in aspects.splitlines()[2:]] == ["| judge: shape", "| judge: colour"]
    assert hacking.splitlines()[-1] == "| drift | 0 | 0 | +0 | [+0, +0] | – | – |"
    assert told == evaluation.verdict


def test_every_number_is_kept_pair_by_pair_and_prompt_by_prompt(evaluation):
    pairs = pair_table(evaluation, ["clip", "jpeg"], ["judge: shape", "judge: colour"])
    table = prompt_table(evaluation, pairs)
    clip = table[table.measure == "clip"].set_index("prompt")
    assert clip.loc["a cat"][["images", "base", "aligned", "difference", "win_rate"]].tolist() == [3, 2, 3, 1, 1]
    assert clip.loc["a dog"].difference == pytest.approx(-1 / 3) and clip.loc["a dog"].win_rate == pytest.approx(1 / 3)
    colour = table[table.measure == "judge: colour"]
    assert colour.prompt.tolist() == ["a dog"] and colour.kind.tolist() == ["aspect"]
    assert table[table.kind == "hacking"].win_rate.isna().all()
    assert pairs[pairs.measure == "clip"].aligned.tolist() == evaluation.aligned.scores[:, 0].tolist()


def test_the_diversity_of_a_prompt_is_in_its_table():
    embeddings = np.eye(4)[[0, 0, 1, 0]]
    base = drawn_images(np.zeros(4), ["a", "b", "a", "b"], embeddings=embeddings)
    evaluation = compare_drawn(base, base, ["clip"], [], 0)
    table = prompt_table(evaluation, pair_table(evaluation, ["clip"], []))
    rows = table[table.measure == "diversity"].set_index("prompt")
    assert rows.base.to_dict() == {"a": 1.0, "b": 0.0} and rows.images.tolist() == [2, 2]


def shades_shown(picture) -> set[int]:
    """Grey levels / 10 of the pictures in a grid, 192 pixels wide; lettering and frames are grey too, but small."""
    least = 192 * 192
    return {colour[0] // 10 for area, colour in picture.getcolors(1 << 20) if area >= least} - {255 // 10}


def grey_evaluation(changes: np.ndarray) -> Evaluation:
    """Pair i is grey of level 10 i."""
    count = len(changes)
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.full((1, 64, 64, 3), 10, np.uint8)
    prompts = [f"prompt {number}" for number in range(count)]
    base, aligned = drawn_images(np.zeros(count), prompts, images=images), drawn_images(changes, prompts, images=images)
    return compare_drawn(base, aligned, ["clip"], [], 0)


def test_the_picture_shows_the_pairs_that_changed_most_either_way():
    count = MOST_CHANGED_PAIRS + 4
    unchanged = [1, 5, 6, 9]
    changes = np.array([0 if pair in unchanged else (-1) ** pair * (pair + 1) for pair in range(count)], np.float32)
    changed = {pair for pair in range(count) if pair not in unchanged}
    assert len(changed) == MOST_CHANGED_PAIRS
    assert shades_shown(most_changed_picture(grey_evaluation(changes))) == changed


def test_the_best_the_median_and_the_worst_are_shown_most_telling_first():
    changes = np.array([5, -3, 0, 1, 4, -1, 2, 3, -2, 6, -5, -4, -6, 7, -7], np.float32)
    chosen = chosen_pairs(changes)
    assert changes[chosen["best"]].tolist() == [7, 6, 5, 4, 3, 2]
    assert changes[chosen["worst"]].tolist() == [-7, -6, -5, -4, -3, -2]
    assert changes[chosen["median"]][0] == 0 and sorted(changes[chosen["median"]]) == [-3, -2, -1, 0, 1, 2]
    pictures = change_pictures(grey_evaluation(changes))
    assert list(pictures) == ["best", "median", "worst"]
    assert shades_shown(pictures["best"]) == set(chosen["best"])


def test_of_few_pairs_all_are_shown():
    assert all(sorted(pairs) == [0, 1] for pairs in chosen_pairs(np.array([1.0, -1.0])).values())
    assert PAIRS_OF_A_KIND > 2
