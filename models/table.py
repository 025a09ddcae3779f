"""The catalogue as a table for the README: `python -m atomzoo.models.table [README.md]` writes it there."""

from __future__ import annotations

import sys
from pathlib import Path

from .model import Model, models

__all__ = ["catalogue_table", "with_table"]

START = "<!-- catalogue: made by `python -m atomzoo.models.table`, do not edit -->"
END = "<!-- end of catalogue -->"


def catalogue_table() -> str:
    """The package's own models as a Markdown table."""
    own = [m for m in models() if m.module.startswith((__package__ or "").split(".")[0] + ".")]
    lines = ["| model | data | what it is | contains | prior sets |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *map(_row, own)])


def _row(model: Model) -> str:
    title = model.card.title.rstrip(".").replace("|", "\\|")
    contains = ", ".join(f"`{name}`" for name in model.contains) or "–"
    return f"| `{model.name}` | {model.kind} | {title} | {contains} | {', '.join(model.priors)} |"


def with_table(text: str) -> str:
    """A README with its catalogue made anew."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{catalogue_table()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
