"""The report's style sheet: light and dark by the reader's own setting, narrow screens, print."""

STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2430; --soft: #5b6878; --line: #dfe4ea; --track: #eceff3;
  --blue: #2463c9; --amber: #c26a00; --teal: #0f8577; --violet: #7a4fc0; --rose: #bd3d63; --grey: #8793a3;
  --good: #0f7a4a; --bad: #b3261e; --heat: 36, 99, 201; }
@media (prefers-color-scheme: dark) { :root {
  --page: #10151c; --card: #19212b; --ink: #e7ecf2; --soft: #9eabba; --line: #2c3744; --track: #263140;
  --blue: #76a8ff; --amber: #f0a742; --teal: #4fc9b7; --violet: #b595f2; --rose: #f08aa8; --grey: #7f8d9e;
  --good: #5fd39a; --bad: #ff8a80; --heat: 118, 168, 255; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.2rem; margin: 40px 0 6px; }
h3 { font-size: 1rem; margin: 0; }
p { margin: 6px 0 12px; max-width: 74ch; }
.soft, .note, figcaption { color: var(--soft); }
.grid2 { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); }
.charts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.grid1 { display: grid; gap: 14px; }
.after { margin-top: 14px; } figure { margin: 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px;
  break-inside: avoid; }
.tile b { display: block; font-size: 1.55rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .9rem; }
.heat { padding: 2px 6px; border-radius: 4px; }
.good { color: var(--good); } .bad { color: var(--bad); }
svg { display: block; width: 100%; height: auto; margin-top: 8px; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); stroke-width: 1; }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.line.held { stroke: var(--blue); } .dot.held { fill: var(--blue); }
.line.training { stroke: var(--amber); stroke-width: 1.6; stroke-dasharray: 4 3; }
.dot.training { fill: var(--amber); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .94rem; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:last-child, th:last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 600; }
tr:last-child > * { border-bottom: 0; }
.scroll td { white-space: nowrap; } .scroll th { vertical-align: bottom; }
.words th, .words td { text-align: left; } .words td:first-child { width: 50%; }
.bar { display: grid; grid-template-columns: 9.5em 1fr 10.5em; gap: 12px; align-items: center;
  margin: 9px 0; }
.bar .name { font-weight: 600; } .bar .note { font-size: .92rem; font-variant-numeric: tabular-nums; }
.track { position: relative; display: flex; height: 20px; background: var(--track);
  border-radius: 4px; overflow: hidden; }
.track i { display: block; height: 100%; flex: none; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 10px 0 4px;
  font-size: .92rem; color: var(--soft); }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 7px; }
.k-backbone, .k-forward { background: var(--teal); }
.k-experts, .k-host, .k-hostcompute { background: var(--blue); }
.k-masters, .k-optimizer { background: var(--rose); }
.k-gradients, .k-backward, .k-vote { background: var(--violet); }
.k-moments, .k-wait, .k-exchangewait { background: var(--amber); } .k-evaluation { background: var(--good); }
.k-data, .k-checkpoint, .k-other { background: var(--grey); } .k-checkpoint { opacity: .6; }
.k-other { opacity: .35; } .k-vote { opacity: .5; }
.gaps { border-left: 4px solid var(--amber); margin: 14px 0; } .gaps ul { margin: 6px 0 0; padding-left: 20px; }
.lane { position: relative; height: 20px; background: var(--track); border-radius: 4px; }
.mark { position: absolute; top: 4px; width: 4px; height: 12px; margin-left: -2px; border-radius: 2px;
  background: var(--blue); }
.mark.warning { background: var(--bad); top: 1px; height: 18px; }
.ends { display: flex; justify-content: space-between; gap: 12px; margin-top: -6px;
  font-size: .85rem; color: var(--soft); font-variant-numeric: tabular-nums; }
.events { list-style: none; margin: 16px 0 0; padding: 0; font-size: .94rem; }
.events li { display: grid; grid-template-columns: 5em 8em 1fr; gap: 2px 12px; padding: 5px 0;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
.events time, .events span:nth-child(2) { color: var(--soft); font-variant-numeric: tabular-nums; }
.events .day { display: block; font-weight: 600; border-top: 0; padding-top: 12px; }
.k-held { background: var(--blue); } .k-training { background: var(--amber); }
code, .mono { font-family: ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; font-size: .88em;
  overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(9em, max-content) 1fr; gap: 4px 18px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 620px) {
  main { padding: 18px 14px 40px; } h1 { font-size: 1.4rem; }
  .bar { grid-template-columns: 1fr auto; gap: 2px 10px; } .bar .track { grid-column: 1 / -1; grid-row: 2; }
  th, td { padding: 5px 7px; font-size: .88rem; }
  .bar .lane { grid-column: 1 / -1; grid-row: 2; } .bar .ends { grid-column: 1 / -1; }
  .events li { grid-template-columns: 5em 1fr; } .events li span:last-child { grid-column: 1 / -1; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; } }
@media print { body { background: #fff; font-size: 12px; } main { max-width: none; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } h2, h2 + p { break-after: avoid; }
  .charts, .grid2 { grid-template-columns: 1fr 1fr; } .scroll { overflow: visible; } }
"""
