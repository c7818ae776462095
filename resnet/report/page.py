"""The report as one HTML page that needs nothing beside it: the charts are in it, as images."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape

import pandas as pd

from resnet.report import plots
from resnet.report.tables import HEADER, READING, Row

STYLE = """
:root { color-scheme: light; --ink: #1b1f27; --soft: #5f6775; --grid: #e3e6eb }
body { margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 84rem; background: #fff; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem }
h3 { font-size: 1rem; margin: 2rem 0 0; overflow-wrap: anywhere }
p, ul { margin: .3rem 0; color: var(--soft) } ul { padding-left: 1.1rem; font-size: .87rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .42rem .7rem; text-align: right; vertical-align: top; white-space: nowrap }
th, td { border-bottom: 1px solid var(--grid) }
th:first-child, td:first-child { padding-left: 0; white-space: normal; min-width: 17rem; overflow-wrap: anywhere }
th:nth-child(-n+4), td:nth-child(-n+4) { text-align: left }
thead th { font-weight: 600; border-bottom: 2px solid var(--ink); vertical-align: bottom }
tbody th { font-weight: 600; padding-top: 1.4rem }
tr.published td { color: var(--soft); font-style: italic }
tr.mean td { font-weight: 600 }
small { display: block; color: var(--soft); font-weight: 400; font-style: normal; line-height: 1.35 }
.status-failed, .status-killed { color: #c22545 } .status-running, .status-unfinished { color: #a87400 }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem 1.5rem }
.figures > * { margin: .5rem 0 0; min-width: 0 } .figures img { display: block; width: 100%; height: auto }
@media print { body { max-width: none; padding: 0 } figure { break-inside: avoid } }
""".strip()


Charts = Mapping[str, str]  # `loss` and `top1`, SVG; empty if there is nothing to draw


def html(
    title: str, subtitle: str, rows: Sequence[Row], runs: pd.DataFrame, overlay: Charts, singles: Sequence[Charts]
) -> str:
    """The page: the table, all curves together, and recipe by recipe its curves together and those of each of its runs."""
    heading = "Results beside what was published" if any(row.kind == "published" for row in rows) else "Results"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{STYLE}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(subtitle)}</p>
<h2>{heading}</h2>
<div class="scroll">
<table>
<thead><tr>{"".join(f'<th scope="col">{escape(name)}</th>' for name in HEADER)}</tr></thead>
<tbody>
{chr(10).join(map(table_row, rows))}
</tbody>
</table>
</div>
<ul>
{chr(10).join(f"<li>{escape(line)}</li>" for line in READING)}
</ul>
{chr(10).join(sections(runs, overlay, singles))}
</body>
</html>
"""


def table_row(row: Row) -> str:
    """A <tr>; notes and differences in small print."""
    if row.kind == "recipe":
        return f'<tr class="recipe"><th scope="rowgroup" colspan="{len(HEADER)}">{escape(row.name)}</th></tr>'
    cells = [(row.name, "; ".join(row.notes)), *(row.cells)]
    first, *rest = (
        f"<td>{escape(text)}{f'<small>{escape(more)}</small>' if more else ''}</td>" for text, more in cells
    )
    status = f'<td class="status-{escape(row.status.partition(" ")[0])}">{escape(row.status)}</td>'
    return f'<tr class="{row.kind}">{first}{status}{"".join(rest)}</tr>'


def sections(runs: pd.DataFrame, overlay: Charts, singles: Sequence[Charts]) -> Iterator[str]:
    """All runs together, then recipe by recipe: its runs together, then each alone."""
    recipes = runs.groupby("title", sort=False)
    if len(recipes) > 1:
        yield f"<h2>All runs together</h2>\n{figures('all runs', overlay)}"
    for title, members in recipes:
        yield f"<h2>{escape(title)}</h2>"
        if len(members) > 1:
            yield figures(title, plots.overlay(members) if len(recipes) > 1 else overlay)
        for index, run in members.to_dict("index").items():
            seed = f"seed {run['seed']}" if run["seed"] else ""
            facts = " · ".join(filter(None, [*run["words"], seed, run["status"], run["place"]]))
            yield (
                f"<section>\n<h3>{escape(run['run'])}</h3>\n<p>{escape(facts)}</p>\n"
                f"{figures(run['run'], singles[index])}\n</section>"
            )


def figures(name: str, charts: Charts) -> str:
    """The charts of loss and top-1 side by side where there is room."""
    parts = []
    for metric, svg in charts.items():
        image = base64.b64encode(svg.encode(errors="replace")).decode()
        alt = escape(f"{'Loss' if metric == 'loss' else 'Top-1'} of {name} over epochs")
        missing = f"<p>No {'loss' if metric == 'loss' else 'evaluation'} was recorded.</p>"
        parts.append(f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{image}"></figure>' if svg else missing)
    return f'<div class="figures">\n{chr(10).join(parts)}\n</div>'
