"""The table per round in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loop.campaign.metrics import METRICS
from loop.report.contents import MISSING, ReportView
from loop.report.wording import by_reason, interval, percent, with_spread

if TYPE_CHECKING:
    from rich.table import Table


def terminal_table(view: ReportView) -> Table:
    """The table per round, with 95 % intervals under the values; fits 120 characters."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    people = " · the people are simulated" if view.simulated else ""
    over = "texts" if view.over == "items" else "texts and seeds"
    marked = any(row.not_comparable for row in view.rows)
    table = Table(
        title=escape(f"{view.campaign}: {view.seeds} seeds{people}"),
        caption=(
            f"times 100; each value with its 95 % interval over test {over};"
            " ± is the spread over the seeds; found wrong: the share of the suspects,"
            " below it that of random texts"
            + ("; † is not comparable with the rounds above" if marked else "")
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    table.add_column("gold\nlabels", justify="right")
    table.add_column("found\nwrong", justify="right")
    for column in METRICS.values():
        table.add_column(column.title.replace(" ", "\n"), justify="right", no_wrap=True)
    rows = view.ordered
    for i, row in enumerate(rows):
        wrong = "\n".join(
            f"{percent(share.share)}{'' if reason == 'suspect' else ' random'}"
            for reason, share in by_reason(row)
        )
        cells = [Text(row.name), Text(f"{row.gold_bought:,}"), Text(wrong or MISSING)]
        for column in METRICS.values():
            metric = row.metrics.get(column.key)
            below = interval(metric)
            cells.append(Text(with_spread(row, column) + (f"\n{below}" if below else "")))
        last_of_arm = i + 1 < len(rows) and rows[i + 1].arm != row.arm
        table.add_row(*cells, end_section=last_of_arm)
    return table
