"""How the report looks: one style sheet, for screens light and dark, narrow and wide, and paper."""

from __future__ import annotations

from pacesetter.experiments.report.looks import LOOKS, OTHERS_LOOK, REFERENCE_LOOK, declarations

_LIGHT = (
    "color-scheme: light; --ground: #fdfdfc; --card: #f4f5f3; --line: #dcdfe3; --link: #00578f; "
    "--good: #006b4d; --good-ground: #dff2ea; --bad: #a03300; --bad-ground: #fbe7dc; "
)
_DARK = (
    "color-scheme: dark; --ground: #14171c; --card: #1d2128; --line: #363c46; --link: #7cc3f5; "
    "--good: #62d6ae; --good-ground: #14382d; --bad: #ffa477; --bad-ground: #44261a; "
)

_RULES = """
* { box-sizing: border-box; }
html { font-size: 16px; scroll-padding-top: 4rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main, .bar > div, footer { max-width: 74rem; margin: 0 auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em;
  margin: 2rem 0 .3rem; text-wrap: balance; }
h2.title { font-size: 1.5rem; line-height: 1.25; margin: 2rem 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; font-weight: 650; margin: 3rem 0 .4rem; letter-spacing: -.005em; }
h3 { font-size: .95rem; font-weight: 600; margin: 0 0 .35rem; }
p { margin: .4rem 0; max-width: 46rem; text-wrap: pretty; }
a { color: var(--link); text-underline-offset: .15em; text-decoration-thickness: 1px; }
code, pre { font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, "Liberation Mono", monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: .8rem 1rem;
  border-radius: .5rem; user-select: all; margin: .6rem 0; }
.note, footer { font-size: .875rem; color: var(--muted); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; border-radius: 3px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: 1rem; z-index: 9; background: var(--ground); padding: .5rem; }

.bar { position: sticky; top: 0; z-index: 5; background: var(--ground);
  border-bottom: 1px solid var(--line); }
.bar > div { display: flex; align-items: center; gap: .4rem 1.1rem; min-height: 3.1rem;
  font-size: .9rem; }
.bar a { color: var(--ink); text-decoration: none; white-space: nowrap; padding: .3rem 0; }
.bar a:hover { text-decoration: underline; }
.bar a[aria-current] { box-shadow: inset 0 -2px var(--s0); }
.bar select { flex: 0 1 15rem; min-width: 0; }
.bar .theme { margin-left: auto; }
.scripted .plain, html:not(.scripted) .live { display: none !important; }
button, select { font: inherit; font-size: .875rem; color: var(--ink); background: var(--ground);
  border: 1px solid var(--line); border-radius: .45rem; padding: .25rem .6rem; cursor: pointer; }
button:hover, select:hover { border-color: var(--muted); }

.verdict { background: var(--card); border-radius: .7rem; padding: 1rem 1.3rem; margin: 1.2rem 0;
  box-shadow: inset 4px 0 var(--s0); }
.verdict p { max-width: 58rem; }
.verdict > p { font-size: 1.12rem; line-height: 1.5; }
.verdict details { font-size: .9rem; color: var(--muted); margin-top: .3rem; }
.verdict summary { cursor: pointer; width: fit-content; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; margin: 1.2rem 0 0; padding: 0; }
.facts div { min-width: 4rem; }
.facts dt { font-size: .8rem; color: var(--muted); }
.facts dd { margin: 0; font-size: 1.25rem; font-weight: 600; line-height: 1.3;
  font-variant-numeric: tabular-nums; }

.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr));
  gap: 2rem 2.4rem; margin: 1rem 0; align-items: start; }
.run { display: grid; grid-template-columns: minmax(0, 30rem) minmax(0, 1fr); gap: 1.5rem 2.4rem;
  margin: .8rem 0; align-items: start; }
figure { margin: 0; min-width: 0; max-width: 36rem; }
figure > svg { display: block; width: 100%; height: auto; overflow: visible; }
figcaption { font-size: .84rem; color: var(--muted); margin-top: .4rem; }
.legend { display: flex; flex-wrap: wrap; gap: .35rem .45rem; margin: .8rem 0 .2rem; padding: 0;
  list-style: none; }
.legend button { display: inline-flex; align-items: center; gap: .45rem; padding: .2rem .65rem;
  border-radius: 1rem; font-size: .84rem; text-align: left; line-height: 1.3; }
.legend button[aria-pressed="false"] { opacity: .5; text-decoration: line-through; }
.legend svg { width: 2.1rem; height: .8rem; flex: none; }

.scroll { overflow-x: auto; margin: .7rem 0; border-block: 1px solid var(--line);
  max-width: 100%; position: relative; overscroll-behavior-x: contain; }
.scroll.narrow { width: fit-content; }
table { border-collapse: separate; border-spacing: 0; font-size: .86rem; white-space: nowrap;
  width: 100%; }
th, td { padding: .34rem .8rem; text-align: right; font-variant-numeric: tabular-nums;
  font-weight: 400; }
tbody tr + tr > * { border-top: 1px solid var(--grid); }
thead th { color: var(--muted); font-size: .8rem; vertical-align: bottom;
  border-bottom: 1px solid var(--line); }
th.text, td.text { text-align: left; }
tbody th { text-align: left; position: sticky; left: 0; background: var(--ground); z-index: 1;
  padding-left: .15rem; min-width: 14rem; max-width: 19rem; white-space: normal; line-height: 1.3; }
thead th:first-child { position: sticky; left: 0; background: var(--ground); z-index: 2;
  padding-left: .15rem; }
tbody tr:hover > * { background: var(--card); }
td, th { background-clip: padding-box; }
.run tbody th { min-width: 11rem; }
tr.ours > th { font-weight: 650; }
tr.reference > * { color: var(--muted); }
td.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
th button { all: unset; cursor: pointer; padding: .15rem 0; }
th button:focus-visible { outline: 2px solid var(--link); outline-offset: 3px; }
th button:hover { color: var(--ink); }
th button::after { content: "\\2195"; opacity: .4; padding-left: .3em; }
th[aria-sort] button { color: var(--ink); font-weight: 600; }
th[aria-sort="ascending"] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort="descending"] button::after { content: "\\2193"; opacity: 1; }
td svg.glyph { width: 8.5rem; height: 1rem; vertical-align: -.18rem; }
.ends { color: var(--muted); }
.named { display: block; position: relative; padding-left: 1.05rem; overflow-wrap: anywhere; }
.swatch { position: absolute; left: 0; top: .36em; width: .62rem; height: .62rem;
  border-radius: 50%; }
.chip { display: inline-block; border-radius: 1rem; padding: 0 .6rem; font-size: .8rem;
  background: var(--card); color: var(--muted); }
.chip.better { background: var(--good-ground); color: var(--good); font-weight: 600; }
.chip.worse, .chip.failed { background: var(--bad-ground); color: var(--bad); font-weight: 600; }
.more { display: inline-flex; gap: .5rem; align-items: center; font-size: .86rem; margin: .3rem 0;
  cursor: pointer; }
.few tr.extra { display: none; }
.failures { border: 1px solid var(--bad); border-radius: .6rem; padding: .1rem 1rem .6rem;
  margin: 1.4rem 0; }
.failures h2 { margin-top: .8rem; }
.turn { display: flex; flex-wrap: wrap; justify-content: space-between; gap: .5rem 2rem;
  margin: 2rem 0; font-size: .9rem; }
footer { margin-top: 4rem; padding-block: 1rem 3rem; border-top: 1px solid var(--line); }

@media (max-width: 60rem) { .run { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 36rem) {
  main, .bar > div, footer { padding: 0 1rem; }
  h1 { font-size: 1.35rem; margin-top: 1.4rem; }
  .verdict { padding: .8rem 1rem; } .verdict > p { font-size: 1.02rem; }
  .bar a.wide { display: none; }
  tbody th { min-width: 8.5rem; max-width: 9.5rem; }
  .run tbody th { min-width: 8.5rem; }
  th, td { padding-inline: .6rem; }
  td svg.glyph { width: 6.5rem; }
}
@media screen { .away { display: none; } }
@media print {
  .bar, .skip, .legend button::after, .more, .turn { display: none !important; }
  body { font-size: 10pt; background: #fff; } main { max-width: none; padding: 0; }
  .scroll { overflow: visible; } table { white-space: normal; font-size: 7.5pt; }
  tbody th, thead th:first-child { position: static; }
  th, td { padding: .15rem .3rem; } td svg.glyph { width: 4.5rem; }
  figure, tr, .verdict { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .task { break-before: page; } figure { max-width: 12cm; }
  .run { display: block; } .run figure { max-width: 9cm; }
}
"""


def style_sheet() -> str:
    """The style sheet; every colour of a figure is a variable of it."""
    light, dark = _LIGHT + declarations(dark=False), _DARK + declarations(dark=True)
    # A switch in the legend dims its line in every figure of the page.
    dimmed = ", ".join(
        f".off-{look.name} figure svg .{look.name}"
        for look in (*LOOKS, REFERENCE_LOOK, OTHERS_LOOK)
    )
    return (
        f":root {{ {light} }}\n"
        "@media screen and (prefers-color-scheme: dark) {\n"
        f"  :root:not([data-theme=light]) {{ {dark} }}\n}}\n"
        f"@media screen {{ :root[data-theme=dark] {{ {dark} }} }}\n"
        f"{dimmed} {{ opacity: .07; }}\n{_RULES}"
    )
