"""The table of faults as text."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass
class Row:
    """One fault on one host."""

    section: str
    name: str
    host: str
    expected: str
    number: int
    """Its place in the list of faults."""
    seen: str = "nothing: it never came to its end"
    seconds: float = 0.0
    ok: bool = True

    @classmethod
    def of(cls, told: Mapping[str, object]) -> Row:
        """Return the row of a test that recorded these properties."""
        section, name, host, expected = (str(told[key]) for key in ("section", "name", "host", "expected"))
        return cls(section, name, host, expected, int(str(told["fault"])))

    def place(self) -> tuple[int, str]:
        """By what rows are sorted."""
        return self.number, self.host


def render(rows: Sequence[Row], width: int) -> str:
    """Return the table, section by section, and in its last line how many ended as they should."""
    table = Table("fault", "host", "expected", "seen", "s")
    for index, row in enumerate(rows):
        if index == 0 or rows[index - 1].section != row.section:
            table.add_section()
            table.add_row(f"[bold]{row.section}[/bold]")
        mark = "" if row.ok else "NOT AS EXPECTED: "
        style = None if row.ok else "red"
        table.add_row(row.name, row.host, row.expected, f"{mark}{row.seen}", f"{row.seconds:.1f}", style=style)
    console = Console(file=io.StringIO(), width=max(width, 100), highlight=False, markup=True)
    console.print(table)
    good = sum(row.ok for row in rows)
    console.print(f"{good} of {len(rows)} faults ended as expected")
    return str(console.file.getvalue())  # type: ignore[attr-defined]
