"""The style sheet of the run report, light and dark after the reader's system."""

STYLE = """\
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --line: #e3e6ea; --text: #16191d; --muted: #5d6672 }
@media (prefers-color-scheme: dark) {
  :root { --page: #111418; --card: #191d23; --line: #2c323a; --text: #e8eaed; --muted: #98a2af }
  img.chart { filter: invert(0.9) hue-rotate(180deg); mix-blend-mode: lighten; }
}
* { box-sizing: border-box; }
body { max-width: 1000px; margin: 0 auto; padding: 40px 20px 64px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header p { margin: 0; color: var(--muted); }
h1 { margin: 0 0 24px; font-size: 30px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 14px; font-size: 17px; }
section, dl > div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
section { margin: 16px 0; padding: 20px 22px; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 16px; margin: 16px 0; }
dl > div { padding: 14px 22px; }
dt { color: var(--muted); font-size: 13px; }
dd { margin: 0; font-size: 19px; font-weight: 600; font-variant-numeric: tabular-nums; }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
img.pixels { image-rendering: pixelated; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 16px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 24px 5px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
th { color: var(--muted); font-weight: 500; white-space: nowrap; }
table.figures th, table.figures td { text-align: right; }
pre { margin: 0; overflow-x: auto; font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
section > p, footer { color: var(--muted); font-size: 13px; }
"""
