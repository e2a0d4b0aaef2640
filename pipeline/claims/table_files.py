"""The files of the tables: one JSON file each, and the page and the picture of all that are there."""

import json
from pathlib import Path
from typing import Any

from pipeline.claims import TABLES
from pipeline.claims.chart import claims_chart
from pipeline.claims.page import Result, claims_page
from pipeline.environment import describe_environment
from pipeline.images import save_png
from pipeline.run_folder import write_json, write_text


def read_table(output: Path, name: str) -> dict[str, Any] | None:
    """What `write_table` wrote, or None."""
    path = output / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_table(output: Path, name: str, result: Result, inputs: dict[str, Any]) -> None:
    """Write a table with what it was made from and where, and the page and the picture anew."""
    write_json(output / f"{name}.json", result | {"inputs": inputs, "environment": describe_environment()})
    write_page(output)


def write_page(output: Path) -> None:
    """Write the page and the picture of all tables that are there."""
    results = {table: found for table in TABLES if (found := read_table(output, table)) is not None}
    write_text(output / "claims.md", claims_page(results))
    save_png(claims_chart(results), output / "claims.png")
