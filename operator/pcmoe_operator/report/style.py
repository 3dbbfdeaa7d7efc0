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
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.4rem; line-height: 1.25; margin: 44px 0 14px; padding-top: 18px; border-top: 3px solid var(--blue); }
h3 { font-size: 1.12rem; margin: 34px 0 6px; }
h4 { font-size: 1rem; margin: 0; }
.reader { display: block; font-size: .85rem; font-weight: 600; color: var(--soft); }
p { margin: 6px 0 12px; max-width: 74ch; }
.soft, .note, figcaption { color: var(--soft); }
.tiles { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 190px), 1fr)); }
.contents { display: grid; gap: 14px; margin-top: 14px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); }
.contents a { color: inherit; text-decoration: none; }
.contents a:hover, .contents a:focus { border-color: var(--blue); }
.contents span { display: block; font-size: .85rem; color: var(--soft); } .contents b { color: var(--blue); }
.charts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.grid1 { display: grid; gap: 14px; }
.after { margin-top: 14px; } figure { margin: 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px;
  break-inside: avoid; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
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
svg text.row { fill: var(--ink); paint-order: stroke; stroke: var(--card); stroke-width: 5px; }
.quiet { opacity: .45; } .interval { stroke: currentColor; stroke-width: 3; opacity: .45; }
.mark-circle, .mark-square, .mark-diamond, .mark-triangle, .mark-stick { fill: currentColor; }
.mark-ring { fill: var(--card); stroke: currentColor; stroke-width: 2; }
svg.key { display: inline-block; width: 13px; height: 13px; margin: 0 7px 0 0; vertical-align: -2px; }
.m-together, .m-formula { color: var(--rose); } .m-together { color: var(--blue); }
.m-alone-shard, .m-withoutGradients { color: var(--amber); }
.m-alone-all, .m-probe, .m-probeUpperBound { color: var(--violet); }
.m-union { color: var(--teal); } .m-mostFrequent, .m-unigram { color: var(--grey); }
.said { margin: 0; padding-left: 20px; max-width: 100ch; } .said li + li { margin-top: 5px; }
.bars { margin: 12px 0 -4px; font-size: .92rem; } .charts .bar { grid-template-columns: 1fr 9em; }
.charts .bar .name { display: none; }
.texts dd { font-family: ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; font-size: .86rem;
  white-space: pre-wrap; margin-bottom: 8px; } .texts { grid-template-columns: 1fr; gap: 0; margin-top: 8px; }
.leak { margin-top: 22px; } .leak > p { margin: 2px 0 8px; } .leak .charts { margin-top: 12px; }
small { color: var(--soft); display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .94rem; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:last-child, th:last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 600; }
tr:last-child > * { border-bottom: 0; }
.scroll td { white-space: nowrap; } .scroll th { vertical-align: bottom; }
.scroll td:first-child, .scroll th:first-child { position: sticky; left: 0; background: var(--card); z-index: 1; }
.pairs td:nth-child(2), .pairs th:nth-child(2) { text-align: left; }
.narrow table { font-size: .88rem; } .narrow th, .narrow td { padding: 5px 8px; }
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
.k-held, .k-tensors { background: var(--blue); } .k-training { background: var(--amber); }
.k-peak { background: var(--grey); }
code, .mono { font-family: ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; font-size: .88em;
  overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(9em, max-content) 1fr; gap: 4px 18px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 620px) {
  main { padding: 18px 14px 40px; } h1 { font-size: 1.4rem; }
  .bar { grid-template-columns: 1fr auto; gap: 2px 10px; } .bar .track { grid-column: 1 / -1; grid-row: 2; }
  th, td { padding: 5px 6px; font-size: .86rem; } .heat { padding: 2px; } svg text { font-size: 14.5px; }
  .bar .lane { grid-column: 1 / -1; grid-row: 2; } .bar .ends { grid-column: 1 / -1; }
  .events li { grid-template-columns: 5em 1fr; } .events li span:last-child { grid-column: 1 / -1; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; } }
@media print { @page { margin: 13mm; } :root { font-size: 11.5px; } body { background: #fff; }
  main { max-width: none; padding: 0; } p, li, tr { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .charts { grid-template-columns: 1fr 1fr; } .tiles { grid-template-columns: repeat(auto-fit, minmax(110px, 1fr)); }
  .contents { display: none; } .scroll { overflow: visible; } .scroll th { overflow-wrap: normal; }
  table { font-size: .9rem; } .narrow table { font-size: .8rem; } th, td, .narrow th, .narrow td { padding: 3px 5px; }
  section + section { break-before: page; } h2, h3, h4 { break-after: avoid; }
  .bar { margin: 4px 0; } .track, .lane { height: 12px; } .lane .mark { top: 2px; height: 8px; }
  .bars { margin: 6px 0 -2px; } }
"""
