"""Write the parts of docs/ that come from the code: `make docs`."""

from pathlib import Path

from pipeline.config_reference import configuration_page
from pipeline.run_folder import write_text

CONFIGURATION_PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


def main() -> None:
    """Write docs/configuration.md."""
    write_text(CONFIGURATION_PAGE, configuration_page())
    print(f"wrote {CONFIGURATION_PAGE}")


if __name__ == "__main__":
    main()
