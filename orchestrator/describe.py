"""The catalogue for people and programs, from the ``Config`` lines alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from methods.contracts import Method
from search_spaces.domains import Choice, Domain, Int, Knob


def span(domain: Domain | None) -> str:
    """A domain in a few characters."""
    if domain is None:
        return "fixed"
    if isinstance(domain, Choice):
        return ", ".join(str(o).lower() if isinstance(o, bool) else str(o) for o in domain.options)
    if isinstance(domain, Int) and domain.power_of_two:
        return f"{domain.low} .. {domain.high}, powers of 2"
    scale = "" if domain.scale == "linear" else f", {domain.scale}"
    return f"{domain.low:g} .. {domain.high:g}{scale}"


def _bounds(domain: Domain | None) -> list[Any] | None:
    if domain is None:
        return None
    return list(domain.options) if isinstance(domain, Choice) else [domain.low, domain.high]


def knob_json(item: Knob) -> dict[str, Any]:
    return {
        "name": item.name,
        "type": item.type,
        "default": item.default,
        "legal": _bounds(item.legal),
        "search": _bounds(item.search),
        "scale": item.search.scale if item.search is not None else item.legal.scale,
        "choices": list(item.legal.options) if isinstance(item.legal, Choice) else None,
        "unit": item.unit,
        "doc": item.doc,
        "source": item.source,
    }


def catalogue_json(methods: Iterable[Method]) -> list[dict[str, Any]]:
    """The stable interface of ``labelwise methods --json``."""
    return [
        {"name": m.name, "family": m.family, "paper": m.paper, "knobs": [knob_json(k) for k in m.knobs().values()]}
        for m in methods
    ]


def method_table(methods: Iterable[Method]) -> Table:
    view = Table(box=None, pad_edge=False)
    for column in ("method", "family", "what it is", "paper"):
        # Names stay whole in a narrow terminal or a pipe, so that they can be copied and found.
        view.add_column(column, no_wrap=column in ("method", "family"))
    for m in methods:
        view.add_row(m.name, m.family, m.summary, m.paper)
    return view


def knob_table(method: Method) -> Table:
    """Four columns, so that it reads in a terminal of 80: knob, default, what is searched, and what it is."""
    view = Table(box=None, pad_edge=False)
    for column in ("knob", "default", "searched", "what it is"):
        view.add_column(column, no_wrap=column in ("knob", "default"))
    for item in method.knobs().values():
        unit = f", in {item.unit}" if item.unit else ""
        condition = f" (if {item.when.knob} is {' or '.join(map(str, item.when.values))})" if item.when else ""
        what = f"{item.doc}{unit}{condition}; legal {span(item.legal)} [{item.source}]"
        view.add_row(item.name, str(item.default), span(item.search), Text(what))
        for variant in item.variants:
            what = f"if {variant.when.knob} is {' or '.join(map(str, variant.when.values))}"
            view.add_row("", str(variant.default), span(variant.search), what)
    return view


def markdown_table(methods: Iterable[Method]) -> str:
    """The README's method table."""
    lines = ["| method | family | what it is | own knobs: default; searched | paper |", "|---|---|---|---|---|"]
    for m in methods:
        knobs = "; ".join(f"`{k.name}` {k.default}; {span(k.search)}" for k in m.knobs().values())
        lines.append(f"| `{m.name}` | {m.family} | {m.summary} | {knobs} | {m.paper} |")
    return "\n".join(lines)
