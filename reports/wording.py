"""Numbers, units, symbols and cards as text for people, with whatever came from a file made harmless.

Example:
    >>> plus_minus(1.2345, 0.0412)
    '1.23 ± 0.04'
    >>> plus_minus(1990.234, 17.3)
    '1990 ± 17'
    >>> plus_minus(2.5e-7, 1.3e-8)
    '(2.50 ± 0.13) × 10⁻⁷'
    >>> unit("C/m^2")
    'C/m²'
    >>> str(symbol_html("P_s"))
    'P<sub>s</sub>'
"""

from __future__ import annotations

import math
import re
import unicodedata

from markupsafe import Markup, escape

__all__ = [
    "axis_label",
    "card_html",
    "clean",
    "code_html",
    "count",
    "gate_value",
    "inline_html",
    "interval",
    "literal",
    "mathtext",
    "plain",
    "plus_minus",
    "shorter_numbers",
    "signed",
    "significant",
    "symbol_html",
    "unit",
    "units_within",
]

_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
# Short ones only: `wall_neel` is a name, `P_s` is a symbol.
_SYMBOL = re.compile(r"([^\W\d_]{1,3})_([^\W_]{1,3})")
# Outside of these powers of ten a number is easier read with its exponent apart.
SMALLEST, LARGEST = -3, 6


def clean(text: object, most: int = 0) -> str:
    """Text without control and direction characters, on one line, cut to a length."""
    kept = "".join(
        " " if c in "\n\r\t" else "\N{REPLACEMENT CHARACTER}" if _unprintable(c) else c
        for c in str(text)
    )
    return kept if not most or len(kept) <= most else kept[: most - 1].rstrip() + "…"


def _unprintable(character: str) -> bool:
    """Control, format (such as right-to-left override), surrogate and private characters."""
    return (
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co") or character in "\ufffe\uffff"
    )


def unit(text: object) -> str:
    """A unit as it is printed; nothing for a pure number."""
    plain = clean(text, 40).strip()
    if plain in ("", "1"):
        return ""
    return re.sub(
        r"\^(-?\d+)|\*\*(-?\d+)", lambda m: (m[1] or m[2]).translate(_SUPERSCRIPTS), plain
    )


def units_within(sentence: str) -> str:
    """A sentence with the powers in its units set high."""
    return re.sub(r"(?<=[A-Za-zµΩ])\^(-?\d)\b", lambda m: m[1].translate(_SUPERSCRIPTS), sentence)


def shorter_numbers(text: str, digits: int = 4) -> str:
    """A prior as people read it: no number with more digits than mean something."""
    return re.sub(r"(?<![\w.])\d+\.\d+(?:e[-+]?\d+)?", lambda m: f"{float(m[0]):.{digits}g}", text)


def axis_label(name: object, units: object = "") -> str:
    """Such as "x (unit cell)", for an axis."""
    written = unit(units)
    return f"{mathtext(name)} ({mathtext(written)})" if written else mathtext(name)


def literal(name: object, most: int = 40) -> str:
    """A name for a figure, taken literally: a dollar sign begins no formula."""
    return clean(name, most).replace("$", r"\$")


def mathtext(name: object, most: int = 40) -> str:
    """A name for a figure: `P_s` with its index set low, anything else taken literally."""
    plain = clean(name, most)
    if found := _SYMBOL.fullmatch(plain):
        return f"${found[1]}_{{{found[2]}}}$"
    return literal(plain)


def symbol_html(name: object) -> Markup:
    """A name with its index set low."""
    plain = clean(name, 80)
    head, _, rest = plain.partition("[")
    if found := _SYMBOL.fullmatch(head):
        low = Markup("{}<sub>{}</sub>").format(found[1], found[2])
        return low + (f"[{rest}" if rest else "")
    return escape(plain)


def significant(value: float | None, digits: int = 2) -> str:
    """A number with as many digits as mean something; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    power = _power(value)
    if power >= LARGEST or power < SMALLEST:
        return (
            f"{_fixed(value / 10.0**power, digits - 1)} × 10{str(power).translate(_SUPERSCRIPTS)}"
        )
    return _fixed(value, max(0, digits - 1 - power))


def plain(value: float) -> str:
    """A number that is known exactly, as it was given."""
    return f"{value:.6g}".replace("-", "−")


def gate_value(value: float, threshold: float) -> str:
    """A gate's figure with a digit more than its threshold has."""
    if not math.isfinite(value) or value == 0:
        return significant(value)
    if abs(value) >= 100 or float(value).is_integer():
        return count(value)
    decimals = len(f"{threshold:g}".partition(".")[2])
    return _fixed(value, max(decimals + 1, 1 - _power(value)))


def signed(value: float) -> str:
    """A change with its sign, to a tenth."""
    text = _fixed(value, 1)
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def count(value: float | None) -> str:
    """A whole number."""
    return "–" if value is None or not math.isfinite(value) else _fixed(value, 0)


def plus_minus(value: float | None, error: float | None) -> str:
    """A value with its error, rounded as the Particle Data Group does: by the error's leading digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if error is None or not math.isfinite(error) or error <= 0:
        return significant(value, 4)
    power = _power(max(abs(value), error))
    shift = power if power >= LARGEST or power < SMALLEST else 0
    places = max(0, _places(error / 10.0**shift))
    inner = f"{_fixed(value / 10.0**shift, places)} ± {_fixed(error / 10.0**shift, places)}"
    return f"({inner}) × 10{str(shift).translate(_SUPERSCRIPTS)}" if shift else inner


def interval(low: float, high: float, error: float) -> str:
    """An interval, rounded by the error of its middle."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "–"
    power = _power(max(abs(low), abs(high)))
    shift = power if power >= LARGEST or power < SMALLEST else 0
    places = max(0, _places(error / 10.0**shift)) if error > 0 else 3
    inner = f"{_fixed(low / 10.0**shift, places)} to {_fixed(high / 10.0**shift, places)}"
    return f"({inner}) × 10{str(shift).translate(_SUPERSCRIPTS)}" if shift else inner


def _power(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _places(error: float) -> int:
    """Decimals that an error deserves: two digits when it begins with 100 to 354, else one."""
    power = _power(error)
    leading = error / 10.0**power
    return 1 - power if leading < 3.55 else -power


def _fixed(value: float, places: int) -> str:
    text = f"{value:.{places}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def code_html(text: str) -> Markup:
    """Lines of code as they are, each made harmless."""
    return Markup("\n").join(escape(clean(line)) for line in text.split("\n"))


def card_html(body: str) -> Markup:
    """A card's paragraphs, lists, **bold**, *italics* and `code` as HTML; all else is plain text."""
    blocks = re.split(r"\n\s*\n", body.strip()) if body.strip() else []
    return Markup("\n").join(_block(block) for block in blocks)


def _block(block: str) -> Markup:
    lines = block.split("\n")
    items = [line for line in lines if re.match(r"\s*[-*] ", line)]
    if not items:
        return Markup("<p>{}</p>").format(_sentences(lines))
    lead = lines[: lines.index(items[0])]
    entries = re.split(r"(?m)^\s*[-*] ", "\n".join(lines[len(lead) :]))[1:]
    listed = Markup("").join(Markup("<li>{}</li>").format(inline_html(e)) for e in entries)
    before = Markup("<p>{}</p>").format(_sentences(lead)) if lead else Markup("")
    return before + Markup("<ul>{}</ul>").format(listed)


def _sentences(lines: list[str]) -> Markup:
    """Lines joined, with a break before one that begins with a bold word, as cards are written."""
    paragraphs = re.split(r"\n\s*(?=\*\*)", "\n".join(lines))
    return Markup("<br>").join(inline_html(p) for p in paragraphs)


def inline_html(text: str) -> Markup:
    """A line's **bold**, *italics* and `code` as HTML; all else is plain text."""
    parts = re.split(r"(`[^`]+`)", clean(text.strip()))
    return Markup("").join(
        Markup("<code>{}</code>").format(p[1:-1])
        if len(p) > 2 and p[0] == p[-1] == "`"
        else _emphasis(p)
        for p in parts
    )


def _emphasis(text: str) -> Markup:
    safe = str(escape(text))
    safe = re.sub(r"\*\*(\S(?:.*?\S)?)\*\*", r"<strong>\1</strong>", safe)
    safe = re.sub(r"(?<!\w)\*(\S(?:[^*]*?\S)?)\*(?!\w)", r"<em>\1</em>", safe)
    # The text was escaped before the tags were put in.
    return Markup(safe)
