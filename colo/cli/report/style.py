"""How a report looks, in light and in dark."""

from __future__ import annotations

STYLE_OF = {
    "raw": "c1", "xbzrle": "c2", "compressed": "c3", "zero": "c4", "unchanged": "c5", "device state": "c4", "headers": "c5",
    "stop": "c6", "save": "c4", "harvest": "c2", "copy": "c1", "rest": "c5",
    "receive RAM": "c1", "receive devices": "c4", "validate": "c2",
    "arbitration": "c4", "settle": "c1", "compose": "c2", "load": "c3", "running": "c5",
}
"""CSS class by what it stands for."""

STYLE = """
:root{--bg:#fff;--fg:#1c2733;--soft:#5b6876;--line:#e3e7ec;--warn:#b3261e;--ground:#f3f5f8;
--c1:#3b6fb6;--c2:#e08a2e;--c3:#2a9574;--c4:#9463b5;--c5:#9aa3ad;--c6:#c8505a;
--h0:#d6e4f3;--h1:#a9cbe8;--h2:#6fabd8;--h3:#3a87c0;--h4:#1d5f9c;--h5:#0b3466}
@media (prefers-color-scheme:dark){:root{--bg:#12171d;--fg:#e4e9ee;--soft:#9aa7b4;--line:#2a333d;--warn:#ff8a80;
--ground:#1a2129;--c1:#6ea3ea;--c2:#f2ab5c;--c3:#52c7a2;--c4:#bd93dd;--c5:#7c8793;--c6:#ee8089;
--h0:#20364e;--h1:#234f7a;--h2:#2b74a8;--h3:#4ba3c9;--h4:#9bd3d0;--h5:#f6f3b5}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1000px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:16px;margin:0}
#fate{margin:0 0 18px;padding:12px 16px;border-left:6px solid;font-size:18px;font-weight:600;overflow-wrap:anywhere}
#fate.lost{background:var(--warn);border-color:var(--warn);color:var(--bg)}#fate.warn{border-color:var(--c2);background:var(--ground)}
.apart{margin-top:30px}.narrow{display:none}
.lead{font-size:17px;margin:0 0 18px;color:var(--soft)}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:5px 12px 5px 0;border-bottom:1px solid var(--line);
overflow-wrap:anywhere}
th{font-weight:600;width:13em;white-space:nowrap}#notes th{width:6em;font-variant-numeric:tabular-nums}
figure{margin:30px 0 0}svg{display:block;width:100%;height:auto;overflow:visible}
.about{margin:2px 0 4px;color:var(--soft);font-size:13px;overflow-wrap:anywhere}
.legend{margin:2px 0 6px;font-size:13px;display:flex;flex-wrap:wrap;gap:2px 18px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px}
.foot{margin-top:36px;color:var(--soft);font-size:13px}a{color:var(--c1)}
details{margin-top:30px}summary{font-weight:600;cursor:pointer}
text{font:12px system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--soft);font-variant-numeric:tabular-nums}
.unit{font-weight:600}.name{fill:var(--fg)}text.warn{fill:var(--warn)}
.halo{fill:var(--fg);font-weight:600;paint-order:stroke;stroke:var(--bg);stroke-width:4px}
.grid,.axis,.border{stroke:var(--line);fill:none}.axis,.border{stroke:var(--soft);stroke-width:.8}
.ground{fill:var(--ground)}
.level{stroke:var(--fg);stroke-dasharray:5 4;stroke-width:1;fill:none}.level.warn{stroke:var(--warn);stroke-dasharray:none}
.level.quiet{stroke:var(--soft);stroke-width:.8;stroke-dasharray:2 3}
.line{fill:none;stroke-width:1.6;stroke-linejoin:round}.line.warn{stroke:var(--warn)}
.dots{fill:none;stroke-width:4;stroke-linecap:round;opacity:.75}.range{fill:none;stroke-width:1.6;opacity:.45}
.fill{stroke:none;shape-rendering:crispEdges}
.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}.c6{--c:var(--c6)}
.line.c1,.line.c2,.line.c3,.dots.c1,.range.c1{stroke:var(--c)}.fill{fill:var(--c)}i{background:var(--c)}
.h0{--c:var(--h0)}.h1{--c:var(--h1)}.h2{--c:var(--h2)}.h3{--c:var(--h3)}.h4{--c:var(--h4)}.h5{--c:var(--h5)}
path.h0,path.h1,path.h2,path.h3,path.h4,path.h5{fill:var(--c);shape-rendering:crispEdges}
@media screen and (max-width:640px){.wide{display:none}.narrow{display:block}main{padding:16px 12px 40px}
th,td,#notes th{display:block;width:auto;white-space:normal;padding:5px 0 0;border-bottom:0}
td{padding:0 0 5px;border-bottom:1px solid var(--line)}h1{font-size:21px;overflow-wrap:anywhere}.lead{font-size:16px}}
@media print{details{display:block}}
""".strip()
