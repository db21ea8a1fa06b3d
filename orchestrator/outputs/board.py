"""The leaderboard on a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def board(frame: Any, rows: int = 20) -> Table:
    """The best trials, in 80 columns whatever the method is called; the whole table is ``leaderboard.csv``."""
    view = Table(box=None, pad_edge=False)
    for column in ("rank", "trial", "method", "epochs", "seconds", "val", "test ± sd (n)"):
        view.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in frame.head(rows).astype(object).where(frame.notna(), None).to_dict("records"):
        ended = "" if row["status"] == "finished" else f" {row['status']}"
        val = "" if row["val"] is None else f"{row['val']:.1%}"
        view.add_row(
            str(row["rank"]),
            str(row["trial"]),
            _which(row),
            f"{row['epochs']}{ended}",
            f"{row['seconds']:.0f}",
            val,
            _test(row),
        )
    return view


def _which(row: Any, width: int = 21) -> str:
    """The method, and in a line of its own the encoder where the study compares several; of a long path the end."""
    label = row.get("encoder")
    if not label:
        return str(row["method"])
    return f"{row['method']}\n  {label if len(label) <= width else '…' + label[1 - width :]}"


def _test(row: Any) -> str:
    if row["test_mean"] is None:
        return ""
    spread = "" if row["test_sd"] is None else f" ± {100 * row['test_sd']:.1f}"
    return f"{row['test_mean']:.1%}{spread} ({row['test_n']})"
