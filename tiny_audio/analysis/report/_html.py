"""HTML elements that escape their content, number formats, and the style sheet."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Sequence

from tiny_audio.analysis.ledger import three_digits

DASH = "–"

# A page must not load external content. Escaping prevents elements that would load some. In addition, this policy makes
# browsers block requests.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data:"


class Markup(str):
    """A string that is already HTML. Every other string is escaped when it becomes part of an element."""

    __slots__ = ()


def join(children: Iterable[object]) -> Markup:
    """Join the children as HTML. ``None`` is skipped, and other values are escaped."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(str(c)) for c in children if c is not None))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Create an HTML element.

    The attribute ``class_`` becomes ``class``, and ``stroke_width`` becomes ``stroke-width``. Attributes that are
    ``None`` are omitted.
    """
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    written = "".join(f' {key}="{html.escape(_attribute(value))}"' for key, value in pairs if value is not None)
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def _attribute(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, numbers: Iterable[int] = ()) -> Markup:
    """Create a table that scrolls sideways if needed. The columns in ``numbers`` are right-aligned."""
    right = set(numbers)

    def cells(kind: str, row: Sequence[object]) -> Markup:
        return tag("tr", *(tag(kind, cell, class_="n" if i in right else None) for i, cell in enumerate(row)))

    body = tag("tbody", *(cells("td", row) for row in rows))
    return tag("div", tag("table", tag("thead", cells("th", head)), body), class_="scroll")


def label(text: object) -> Markup:
    """Create the label of a row or column. Long labels are wrapped."""
    return tag("b", text, class_="label")


def page(title: str, *body: object) -> str:
    """Create a complete page, without external resources or scripts."""
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", f"{title} · Tiny Audio"),
        tag("style", Markup(STYLE)),
    )
    text = f"<!doctype html>\n{tag('html', head, tag('body', *body), lang='en')}\n"
    # If a file name is not valid UTF-8, Python stores its bytes as lone surrogates, which cannot be encoded. They are
    # replaced by `?`.
    return text.encode("utf-8", "replace").decode()


def sections(parts: Iterable[tuple[str, Sequence[object]]], *between: object) -> Iterator[Markup]:
    """Yield links to the sections, the elements ``between``, and the sections. Sections without content are omitted."""
    present = [(title, content) for title, content in parts if content]
    yield tag("nav", *(tag("a", title, href=f"#section-{index}") for index, (title, _) in enumerate(present)))
    yield join(between)
    for index, (title, content) in enumerate(present):
        yield tag("section", tag("h2", title), *content, id=f"section-{index}")


def number(value: object) -> float | None:
    """Return the value as a float, or None if it is not a finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def count(value: object) -> str:
    """Format a count: 1234567 -> 1,234,567."""
    finite = number(value)
    return DASH if finite is None else f"{finite:,.0f}"


def percent(value: object, *, sign: str = "") -> str:
    """Format a fraction: 0.05214 -> 5.21 %."""
    finite = number(value)
    return DASH if finite is None else f"{100 * finite:{sign}.2f}\N{NO-BREAK SPACE}%".replace("-", "−")


def interval(value: object, *, sign: str = "") -> str:
    """Format an interval: [0.048, 0.056] -> 4.80–5.60 %, or with a sign, +4.80 % to +5.60 %."""
    if not isinstance(value, Sequence) or len(value) != 2:
        return DASH
    low, high = (percent(end, sign=sign) for end in value)
    return f"{low} to {high}" if sign else f"{low[:-2]}–{high}"


def compact(value: object) -> str:
    """Format a number with three digits: 1234567 -> 1.23 M, 25000 -> 25 k, 0.00012 -> 1.2e-4."""
    finite = number(value)
    if finite is None:
        return DASH
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(finite) >= size:
            return f"{three_digits(finite / size)}\N{NO-BREAK SPACE}{unit}"
    if finite and abs(finite) < 1e-3:
        mantissa, exponent = f"{finite:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return three_digits(finite)


def duration(seconds: object) -> str:
    """Format a time: 33480 -> 9 h 18 min."""
    finite = number(seconds)
    if finite is None:
        return DASH
    if finite < 60:
        return f"{finite:.1f} s"
    minutes = round(finite / 60)
    return f"{minutes // 60:,} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


STYLE = """
:root{color-scheme:light dark;--bg:#fff;--panel:#f6f7f9;--ink:#1b1f24;--muted:#5d6673;--line:#d9dee5;--grid:#e7eaef;
--s1:#0b62b8;--s2:#c2540a;--s3:#0b7d5c;--s4:#9b3f86;--s5:#7a6200;--s6:#4a5563;
--sub:#7a4b00;--sub-bg:#fdf0cf;--del:#a3182b;--del-bg:#fde4e6;--ins:#1c5fa8;--ins-bg:#e0eefc;--shade:rgba(27,31,36,.3)}
@media screen and (prefers-color-scheme:dark){:root{--bg:#12161b;--panel:#1a2027;--ink:#e6eaef;--muted:#98a3b1;
--line:#323b46;--grid:#262e37;--s1:#6cb2f7;--s2:#f59a57;--s3:#4cc9a0;--s4:#d992c8;--s5:#d8bd4f;--s6:#a9b5c3;
--sub:#f3cd7c;--sub-bg:#3b2f12;--del:#ff9aa6;--del-bg:#45191f;--ins:#93c6fb;--ins-bg:#142f4b;
--shade:rgba(152,163,177,.45)}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.2rem 1.5rem 4rem;max-width:1120px;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.9rem;line-height:1.2;margin:0;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.8rem 0 .8rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
h3{font-size:1.02rem;margin:1.6rem 0 .5rem}h4{font-size:.9rem;margin:1.1rem 0 .4rem}h2,h3,h4,p{overflow-wrap:anywhere}
p{margin:.5rem 0;max-width:75ch}.muted,figcaption small{color:var(--muted);font-weight:400}small{font-size:.85em}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.87em}
pre{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:1rem;overflow:auto}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin-top:1rem;font-size:.9rem}a{color:var(--s1)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(185px,1fr));gap:.7rem;margin:1.4rem 0 .6rem}
.tile{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:.6rem .85rem}
.tile b{display:block;font-size:1.2rem;white-space:nowrap;font-weight:600;font-variant-numeric:tabular-nums}
.tile span{color:var(--muted);font-size:.85rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(430px,100%),1fr));gap:1.1rem}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(250px,1fr));gap:0 1.6rem;align-items:start}
figure{margin:0;padding:.8rem .9rem .5rem;border:1px solid var(--line);border-radius:8px;background:var(--panel);
break-inside:avoid}
figcaption{display:flex;flex-wrap:wrap;gap:.1rem 1rem;align-items:baseline;font-weight:600;font-size:.93rem}
.key{font-weight:400;font-size:.85rem;white-space:nowrap}.key svg{width:26px;height:10px;margin-right:.3rem}
svg{display:block;width:100%;height:auto;overflow:visible}.key svg{display:inline-block}
svg text{fill:var(--muted);font-size:11.5px;font-variant-numeric:tabular-nums}svg text.v{fill:var(--ink)}
svg text.l{fill:var(--ink);font-size:13px}svg text.v{font-size:13px;font-weight:600}svg text tspan{font-weight:400}
.grid{stroke:var(--grid)}.axis{stroke:var(--muted)}.hit{fill:var(--ink);opacity:0}.hit:hover{opacity:.1}
.curve{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}.band{opacity:.17;stroke:none}
.s1{stroke:var(--s1)}.s2{stroke:var(--s2);stroke-dasharray:7 4}.s3{stroke:var(--s3);stroke-dasharray:2 4}
.s4{stroke:var(--s4);stroke-dasharray:10 3 2 3}.s5{stroke:var(--s5);stroke-dasharray:4 2}.s6{stroke:var(--s6)}
.f1{fill:var(--s1)}.f2{fill:var(--s2)}.f3{fill:var(--s3)}.f4{fill:var(--s4)}.f5{fill:var(--s5)}.f6{fill:var(--s6)}
.second{fill:none;stroke:var(--s2);stroke-width:1.8}
/* A shadow marks the side to which a table can scroll; a cover scrolls with the content and hides it at the end. */
.scroll{overflow-x:auto;margin:.5rem 0;background:linear-gradient(90deg,var(--bg) 40%,transparent),
linear-gradient(270deg,var(--bg) 40%,transparent) 100% 0,
radial-gradient(farthest-side at 0 50%,var(--shade),transparent),
radial-gradient(farthest-side at 100% 50%,var(--shade),transparent) 100% 0;background-repeat:no-repeat;
background-size:40px 100%,40px 100%,13px 100%,13px 100%;background-attachment:local,local,scroll,scroll}
figure .scroll{margin:0;--bg:var(--panel)}.scroll svg{min-width:660px}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;min-width:40%}
th{text-align:left;font-weight:600;color:var(--muted);border-bottom:1px solid var(--line);vertical-align:bottom}
th,td{padding:.3rem .9rem .3rem 0}td{border-bottom:1px solid var(--grid);vertical-align:top;overflow-wrap:break-word}
.n{text-align:right;white-space:nowrap}.nest{padding-left:1.1rem;color:var(--muted)}
td b,.nest,.nowrap{white-space:nowrap}
.label{white-space:normal;overflow-wrap:anywhere;display:inline-block;width:max-content;max-width:15em}
article{border:1px solid var(--line);border-radius:8px;padding:.65rem .9rem .75rem;margin:.7rem 0;break-inside:avoid}
article header{display:flex;flex-wrap:wrap;gap:.1rem .9rem;align-items:baseline;font-size:.86rem;color:var(--muted)}
article header b{color:var(--ink);overflow-wrap:anywhere}
audio{display:block;margin:.5rem 0 .2rem;height:36px;width:100%}
.flag{border:1px solid var(--del);color:var(--del);border-radius:4px;padding:0 .35rem;font-size:.8rem}
.words{display:flex;flex-wrap:wrap;gap:.35rem .28rem;margin-top:.5rem;line-height:1.35}
.pair{display:inline-flex;flex-direction:column;min-width:1ch;border-radius:4px;padding:0 .14rem;overflow-wrap:anywhere}
.pair i{font-style:normal;min-height:1.35em}.pair i+i{color:var(--muted)}.side{color:var(--muted);font-size:.78em}
.side i+i{color:inherit}.side i{line-height:1.73}
.sub{background:var(--sub-bg)}.sub i+i{color:var(--sub);font-weight:600;text-decoration:underline wavy 1px}
.del{background:var(--del-bg)}.del i:first-child{color:var(--del);text-decoration:line-through}
.del i+i{color:var(--del)}.ins{background:var(--ins-bg)}.ins i+i{color:var(--ins);font-weight:600}
.ins i+i:before{content:"+"}
.trios .pair i:nth-child(n+2){color:var(--muted)}.trios .side i{white-space:nowrap}
.trios,.legend{--w:600}.w-sub,.trios .pair i.w-sub{background:var(--sub-bg);color:var(--sub);font-weight:var(--w);
text-decoration:underline wavy 1px}.w-del,.trios .pair i.w-del{background:var(--del-bg);color:var(--del)}
.w-ins,.trios .pair i.w-ins{background:var(--ins-bg);color:var(--ins);font-weight:var(--w)}
.legend{max-width:none;display:flex;flex-wrap:wrap;gap:.3rem 1.3rem;align-items:center;font-size:.9rem}
.legend>span{display:inline-flex;gap:.45rem;align-items:center;white-space:nowrap}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--s1)}
@media screen and (max-width:600px){body{padding:1.4rem 1rem 3rem}.tiles{grid-template-columns:1fr 1fr}
.tile b{white-space:normal;font-size:1.05rem}.charts svg:not(.scroll svg) text:not([class]){font-size:16px}}
@media print{body{padding:0;max-width:none;font-size:11px}audio,nav{display:none}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}h2,h3,h4{break-after:avoid}
.charts{grid-template-columns:1fr 1fr}.scroll{overflow:visible}pre{white-space:pre-wrap}}
"""
