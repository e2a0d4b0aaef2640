"""Whether two rewards score alike, so that one that was trained on is not taken for held out."""

from pathlib import Path

from pipeline.config import RewardSettings
from pipeline.training_record import TrainedReward


def test_a_file_and_the_directory_it_lies_in_are_the_same_reward(tmp_path: Path) -> None:
    file, other = tmp_path / "model.safetensors", tmp_path / "other" / "model.safetensors"
    other.parent.mkdir()
    file.touch()
    other.touch()
    for trained, evaluated, same in (
        (file, tmp_path, True),
        (tmp_path, file, True),
        (file, file, True),
        (file, other, False),
        (tmp_path, other, False),
        (tmp_path, other.parent, False),
    ):
        reward = RewardSettings(name="clip", path=str(evaluated))
        assert TrainedReward(name="clip", path=str(trained)).is_same(reward) is same, (trained, evaluated)
        assert not TrainedReward(name="pickscore", path=str(trained)).is_same(reward)
    assert TrainedReward(name="clip_score").is_same(RewardSettings(name="clip_score", path=None))
    assert not TrainedReward(name="clip_score").is_same(RewardSettings(name="clip_score", path=str(tmp_path)))
