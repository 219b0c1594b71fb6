"""The report's style sheet: light and dark by the reader's setting, one column on a phone."""

STYLE = """
:root { --paper: #f6f7f9; --card: #ffffff; --ink: #16191d; --muted: #5b6470; --rule: #e1e5ea;
  --train: #9db4d8; --valid: #0f766e; --eval: #1d4ed8; --bayes: #b45309; }
@media (prefers-color-scheme: dark) { :root { --paper: #101317; --card: #191e24; --ink: #e7eaee; --muted: #9aa4b0;
  --rule: #2c333c; --train: #4b6491; --valid: #4fd1b5; --eval: #7aa8ff; --bayes: #f0a94a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.6rem 0 .4rem; font-size: 1.2rem; }
h3, figcaption { margin: 0; font-size: .95rem; font-weight: 600; }
.kicker { margin: 0; color: var(--muted); font-size: .85rem; }
.note { margin: 0 0 .8rem; color: var(--muted); font-size: .9rem; max-width: 56rem; }
.columns { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.tiles { margin-top: 1.4rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
.tile, figure, .scroll, dl { margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
figure { max-width: 36rem; }
.tile p { margin: 0; color: var(--muted); font-size: .9rem; }
.tile .big { color: var(--ink); font-size: 2rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.big small { margin-left: .4rem; color: var(--muted); font-size: .9rem; font-weight: 400; }
.scroll { overflow-x: auto; padding: .4rem 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
thead th { color: var(--muted); font-weight: 500; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; padding-left: 0; }
tbody tr:last-child > * { border-bottom: 0; }
.total td { font-weight: 600; }
.pairs td, .pairs th { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.pairs th { width: 45%; color: var(--muted); font-weight: 400; }
details > summary { cursor: pointer; color: var(--muted); margin-bottom: .6rem; }
dl { display: grid; grid-template-columns: minmax(6rem, auto) 1fr; gap: .5rem 1.2rem; font-size: .9rem; }
dt { font-weight: 600; }
dd { margin: 0; color: var(--muted); }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .7rem; } }
svg.chart { display: block; width: 100%; height: auto; margin-top: .4rem; }
svg text { fill: var(--muted); font-size: 12px; font-family: inherit; }
svg .name { text-anchor: end; fill: var(--ink); }
svg .value { fill: var(--ink); font-variant-numeric: tabular-nums; }
svg line, svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg line.grid { stroke: var(--rule); stroke-width: 1; }
svg line.axis { stroke: var(--muted); stroke-width: 1; }
svg line.gap { stroke: var(--rule); stroke-width: 4; }
svg .train { stroke: var(--train); }
svg .valid { stroke: var(--valid); }
svg .eval { stroke: var(--eval); }
svg circle { stroke-width: 1; }
svg circle.valid { fill: var(--valid); stroke: var(--card); }
svg circle.eval { fill: var(--eval); stroke: var(--card); }
svg .bayes { stroke: var(--bayes); }
svg .reference { stroke: var(--muted); stroke-width: 1.2; stroke-dasharray: 5 4; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .4rem 0 0; padding: 0; list-style: none;
  color: var(--muted); font-size: .82rem; }
.legend i { display: inline-block; width: 1.4rem; margin-right: .4rem; border-top: 3px solid; vertical-align: middle; }
.legend i.train { color: var(--train); }
.legend i.valid { color: var(--valid); }
.legend i.eval { color: var(--eval); }
.legend i.bayes { color: var(--bayes); }
.legend i.reference { color: var(--muted); border-top: 2px dashed; }
"""
