"""What environment.json says of the code."""

from pathlib import Path

from pipeline.environment import checksum_of_code


def test_the_checksum_is_that_of_the_programs_alone(tmp_path: Path) -> None:
    package = tmp_path / "pipeline" / "methods"
    package.mkdir(parents=True)
    (package / "one.py").write_text("1")
    (package / "two.py").write_text("2")
    before = checksum_of_code(tmp_path)
    (package / "notes.md").write_text("3")
    (tmp_path / "setup.py").write_text("4")
    assert checksum_of_code(tmp_path) == before
    (package / "one.py").write_text("12")
    (package / "two.py").write_text("")
    assert checksum_of_code(tmp_path) != before
    (package / "one.py").write_text("1")
    (package / "two.py").write_text("2")
    (package / "two.py").rename(package / "three.py")
    assert checksum_of_code(tmp_path) != before
