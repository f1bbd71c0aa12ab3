"""The page of an analysis: its plots and what to read in them, with nothing to fetch."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Final

import vl_convert

from hasten.platform.analysis_charts import Figure
from hasten.sweeps.reports import charts


def page(title: str, lead: str, figures: Sequence[Figure], notes: Sequence[str], command: str) -> str:
    """One HTML page that needs no network."""
    bundle = vl_convert.javascript_bundle().replace("</script", "<\\/script")
    sections = "".join(
        f'<figure><div class="chart" id="chart-{figure.name}"></div>'
        f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>"
        for figure in figures
    )
    views = {f"chart-{figure.name}": dict(figure.chart) for figure in figures}
    content = {
        "title": html.escape(title),
        "lead": html.escape(lead),
        "figures": sections,
        "notes": "".join(f"<li>{html.escape(note)}</li>" for note in notes),
        "command": html.escape(command),
        "bundle": bundle,
        # The one way out of a script block is its closing tag.
        "views": json.dumps(views).replace("</", "<\\/"),
        "look": json.dumps({"light": charts.look(dark=False), "dark": charts.look(dark=True)}),
    }
    text = _PAGE
    for key, value in content.items():
        text = text.replace(f"@{key}@", value)
    return text


_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>@title@</title>
<style>
  body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem 4rem; background: #fff; color: #1d2126;
         font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
  h1 { font-size: 1.7rem; overflow-wrap: anywhere; }
  figure { margin: 2rem 0; overflow-x: auto; }
  figcaption, li { color: #5b636d; font-size: .9rem; max-width: 46rem; }
  pre { padding: .7rem .9rem; background: #f5f7f9; border-radius: 6px; overflow-x: auto; }
  @media (prefers-color-scheme: dark) {
    body { background: #14171b; color: #e4e7eb; }
    figcaption, li { color: #9aa3ad; }
    pre { background: #1c2026; }
  }
</style>
</head>
<body>
<h1>@title@</h1>
<p>@lead@</p>
@figures@
<ul>@notes@</ul>
<pre>@command@</pre>
<script>@bundle@</script>
<script>
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches, looks = @look@, views = @views@;
  for (const [id, view] of Object.entries(views))
    // Interpreted: the policy above forbids making code of strings.
    vegaEmbed("#" + id, view,
      {config: dark ? looks.dark : looks.light, actions: false, renderer: "svg", ast: true});
</script>
</body>
</html>
"""
