"""The report as one HTML page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from resnet.report import figures
from resnet.report.groups import Group, by_recipe
from resnet.report.plots import STYLE
from resnet.report.tables import COLUMNS, READING, Block, Row

PAGE_STYLE = """
body { margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 84rem; background: var(--paper); color: var(--ink);
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
.status-failed, .status-killed { color: var(--c6) } .status-running, .status-unfinished { color: var(--c4) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem 1.5rem }
.figures > * { margin: .5rem 0 0; min-width: 0 } .figures svg { display: block; width: 100%; height: auto }
@media print { body { max-width: none; padding: 0 } figure { break-inside: avoid } }
""".strip()


def html(title: str, made: str, blocks: Sequence[Block], groups: Sequence[Group]) -> str:
    """The page: the table, the curves overlaid, the curves of each run. `made` says of what, when and by whom."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{STYLE}
{PAGE_STYLE}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(made)}</p>
<h2>{"Results beside what was published" if any(group.row for group in groups) else "Results"}</h2>
<div class="scroll">
{table(blocks)}
</div>
<ul>
{"".join(f"<li>{escape(line)}</li>{chr(10)}" for line in READING)}</ul>
{chr(10).join(sections(groups))}
</body>
</html>
"""


def table(blocks: Sequence[Block]) -> str:
    """Every block with a head of its own."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("run", "status", *COLUMNS))
    parts = [f"<table>\n<thead><tr>{head}</tr></thead>"]
    for block in blocks:
        parts.append(f'<tbody>\n<tr><th scope="rowgroup" colspan="{len(COLUMNS) + 2}">{escape(block.title)}</th></tr>')
        parts += [line(row) for row in block.rows]
        parts.append("</tbody>")
    return "\n".join([*parts, "</table>"])


def line(row: Row) -> str:
    """A <tr>; notes and differences in small print."""
    cells = [(row.name, "; ".join(row.notes)), *row.cells]
    first, *rest = [f"<td>{escape(text)}{small(more)}</td>" for text, more in cells]
    status = f'<td class="status-{escape(row.status.partition(" ")[0])}">{escape(row.status)}</td>'
    return f'<tr class="{row.kind}">{first}{status}{"".join(rest)}</tr>'


def small(text: str) -> str:
    """Small print, if there is any."""
    return f"<small>{escape(text)}</small>" if text else ""


def sections(groups: Sequence[Group]) -> Iterator[str]:
    """All runs together, then recipe by recipe: its runs together, then each alone."""
    recipes = by_recipe(groups)
    if len(recipes) > 1:
        yield f"<h2>All runs together</h2>\n{pictures(figures.overlaid(groups))}"
    for title, members in recipes.items():
        yield f"<h2>{escape(title)}</h2>"
        if sum(len(group.runs) for group in members) > 1:
            yield pictures(figures.overlaid(members))
        yield from (section(group, number) for group in members for number in range(len(group.runs)))


def section(group: Group, number: int) -> str:
    """One run: what it is, and its curves."""
    run = group.runs[number]
    told = [*group.settings, f"seed {run.seed}" if run.seed else "", run.status, run.place]
    return (
        f"<section>\n<h3>{escape(run.name)}</h3>\n<p>{escape(' · '.join(filter(None, told)))}</p>\n"
        f"{pictures(figures.alone(group, run))}\n</section>"
    )


def pictures(charts: dict[str, str]) -> str:
    """Charts side by side where there is room."""
    missing = {"loss": "No loss was recorded.", "top1": "No evaluation was recorded."}
    drawn = [f"<figure>{svg}</figure>" if svg else f"<p>{missing[name]}</p>" for name, svg in charts.items()]
    return f'<div class="figures">\n{chr(10).join(drawn)}\n</div>'
