"""How reports look: colours for light, dark and paper, and the layout of a page.

The colours of lines follow Okabe and Ito (Color Universal Design, 2008), so that any colour vision tells them apart,
darker on white and lighter on black until each has a contrast of 4.5:1 to its ground, as letters must have (WCAG 2.2,
1.4.3). Dashes tell the lines apart where there is no colour at all.
"""

from __future__ import annotations

__all__ = ["PAGE", "PICTURE"]

_LIGHT = """\
--ground:#fff;--panel:#fff;--sunk:#f5f6f8;--ink:#1b1f24;--soft:#57606a;--rule:#d8dee4;--faint:#eceff2;
--band:rgba(87,96,106,.07);--good:#116329;--bad:#a40e26;--bad-ground:#ffebe9;--warn:#7a4b00;--warn-ground:#fff6dd;
--c1:#0072b2;--c2:#c75100;--c3:#00805c;--c4:#b0518a;--c5:#8a6d00;--c6:#5b5f97"""

_DARK = """\
--ground:#0e1116;--panel:#151a21;--sunk:#1b212a;--ink:#e6e9ed;--soft:#9aa5b1;--rule:#313a46;--faint:#232b35;
--band:rgba(154,165,177,.09);--good:#5bd17b;--bad:#ff8b84;--bad-ground:#33161a;--warn:#f0c05a;--warn-ground:#2c2411;
--c1:#58b4f0;--c2:#ff9a4d;--c3:#35c99b;--c4:#e79ac4;--c5:#e3c34a;--c6:#a9aef0"""

_COLOURS = f"""\
:root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
@media print{{:root{{color-scheme:light;{_LIGHT}}}}}
"""

_PLOT = """\
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round;vector-effect:non-scaling-stroke}
.s1{stroke:var(--c1)}.s2{stroke:var(--c2);stroke-dasharray:7 4}.s3{stroke:var(--c3);stroke-dasharray:2 4}
.s4{stroke:var(--c4);stroke-dasharray:9 4 2 4}.s5{stroke:var(--c5);stroke-dasharray:12 5}
.s6{stroke:var(--c6);stroke-dasharray:4 3}
.area{fill:var(--c1);opacity:.1}
.grid{stroke:var(--faint);fill:none}.axis,.mark{stroke:var(--soft);fill:none}.band{fill:var(--band)}
.tick,.phase{fill:var(--soft);font-size:12.5px}.tick{font-variant-numeric:tabular-nums}
.tick.y{text-anchor:end}.tick.x,.phase{text-anchor:middle}.tick.x.end{text-anchor:end}.phase{font-style:italic}
.hint rect{fill:transparent}.hint path{stroke:none}.hint:hover path{stroke:var(--soft);stroke-dasharray:3 3}
"""

#: For a picture that stands alone.
PICTURE = f"""\
{_COLOURS}{_PLOT}svg{{font-family:system-ui,sans-serif}}.ground{{fill:var(--ground)}}
.head{{fill:var(--ink);font-size:22px;font-weight:600}}.title{{fill:var(--ink);font-size:15px;font-weight:600}}
.note,.name{{fill:var(--soft);font-size:12.5px}}
"""

#: For a page.
PAGE = f"""\
{_COLOURS}{_PLOT}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}}
main{{max-width:1240px;margin:0 auto;padding:28px 24px 48px}}
h1{{font-size:26px;line-height:1.25;margin:0;overflow-wrap:anywhere;text-wrap:balance}}
h2{{font-size:18px;margin:36px 0 12px}}h3{{font-size:15px;margin:0}}.pair h3{{margin:16px 0 6px}}
p{{margin:0}}.soft,.note{{color:var(--soft)}}.note{{font-size:13px}}
code,pre{{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}}
pre{{margin:12px 0 0;padding:10px 14px;background:var(--sunk);border-radius:8px;white-space:pre-wrap;
overflow-wrap:anywhere}}
header{{display:flex;flex-wrap:wrap;gap:6px 16px;align-items:center}}header h1{{flex:1 1 420px}}
.badge{{padding:3px 14px;border-radius:99px;border:1.5px solid currentColor;font-weight:600;white-space:nowrap}}
.good{{color:var(--good)}}.bad{{color:var(--bad)}}.warn{{color:var(--warn)}}
.callout{{margin:16px 0 0;padding:10px 16px;border-left:4px solid var(--warn);background:var(--warn-ground);
border-radius:0 8px 8px 0}}.callout ul{{margin:0;padding-left:18px}}.callout.stop{{border-color:var(--bad);
background:var(--bad-ground)}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(176px,1fr));gap:12px;margin-top:20px}}
.tile,figure{{border:1px solid var(--rule);border-radius:10px;background:var(--panel)}}.tile{{padding:12px 16px}}
.tile b{{display:block;font-size:25px;line-height:1.3;font-weight:600;font-variant-numeric:tabular-nums}}
.tile span{{display:block;font-size:13px;color:var(--soft)}}
.plots{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,500px),1fr));gap:16px}}
figure{{margin:0;padding:14px 16px 8px;break-inside:avoid;min-width:0}}
figure>svg{{display:block;width:100%;height:auto;margin-top:6px}}
.legend{{display:flex;flex-wrap:wrap;gap:2px 18px;list-style:none;margin:4px 0 0;padding:0;font-size:13px}}
.legend li{{display:flex;align-items:center;gap:6px;overflow-wrap:anywhere}}.key{{width:28px;height:10px;flex:none}}
.wide{{overflow-x:auto}}table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}}
th,td{{vertical-align:top;padding:6px 12px 6px 0;border-bottom:1px solid var(--rule);text-align:right;
white-space:nowrap}}
th{{font-weight:600;color:var(--soft);font-size:13px;white-space:normal}}th:first-child,td:first-child{{text-align:left}}
tbody th{{min-width:118px;font-size:15px;color:var(--ink);font-weight:400;white-space:normal;overflow-wrap:anywhere}}
td.cause{{white-space:normal;overflow-wrap:anywhere;min-width:130px}}
tr>*:last-child{{padding-right:2px}}
.pair{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:0 40px}}
.bar{{width:34%;min-width:70px}}.bar i{{display:block;height:10px;border-radius:3px;background:var(--c2);min-width:2px}}
.delta{{display:block;font-size:12.5px;color:var(--soft)}}
dl{{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:0}}dt{{color:var(--soft)}}
dd{{margin:0;overflow-wrap:anywhere}}
details{{margin-top:20px}}summary{{cursor:pointer;font-weight:600}}
footer{{margin-top:40px;font-size:13px;color:var(--soft)}}a{{color:var(--c1)}}
@media (max-width:640px){{main{{padding:18px 14px 32px}}h1{{font-size:21px}}.tick,.phase{{font-size:17px}}
.tiles{{grid-template-columns:1fr 1fr;gap:8px}}.tile{{padding:10px 12px}}.tile b{{font-size:20px}}
figure{{padding:12px 10px 6px}}dl{{grid-template-columns:1fr;gap:0}}dd{{margin-bottom:6px}}}}
@media print{{main{{max-width:none;padding:0}}body{{font-size:11pt}}.band,.area,.bar i,.tile{{print-color-adjust:exact;
-webkit-print-color-adjust:exact}}details:not([open]){{display:none}}.tick,.phase{{font-size:17px}}h2{{break-after:avoid}}tr{{break-inside:avoid}}
.plots{{grid-template-columns:1fr 1fr}}}}
"""
