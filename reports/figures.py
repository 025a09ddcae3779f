"""Figures of a report: one quiet style, inline SVG that takes its colours from the page, so light and dark both read.

Every colour below is written to the SVG as a CSS variable with the light colour as fallback. Nothing here touches
pyplot, and no name from a file is read as a formula.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from .wording import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DASHES",
    "GREY",
    "INK",
    "LINE",
    "MARKERS",
    "MODELS",
    "MUTED",
    "PAPER",
    "WIDTH",
    "Look",
    "Picture",
    "band",
    "colour_bar",
    "draw",
    "look",
]

# Light colours, by the name of the CSS variable that replaces them; the dark ones are in templates/style.css.
INK, MUTED, LINE, PAPER = "#1b1f24", "#5b6570", "#c9ced4", "#fefefd"
# For what is rasterised, whose colours the page cannot change: it reads on both.
GREY = "#7d858d"
# Okabe and Ito's hues, darkened until each has a contrast of 4.5 on white.
MODELS = ("#0067ac", "#b84a06", "#00735a", "#8f4a9e", "#7a5f00", "#6b5b4d")
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", PAPER: "paper"} | {
    colour: f"model-{i}" for i, colour in enumerate(MODELS)
}
DASHES = ("-", (0, (5, 2)), (0, (5, 2, 1, 2)), (0, (1.5, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "atomzoo",
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "axes.titlesize": 9.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.dpi": 72.0,
    "image.interpolation": "none",
    "image.origin": "lower",
}
PNG = "data:image/png;base64,"
# Below so many characters a picture is no burden.
WORTH_PACKING = 20_000
# Of a hundred: what lies behind a map is there to find one's way.
GREY_QUALITY = 55
# As many as a colour scale needs for no step in it to be seen.
COLOURS = 128
FONT = r"font: (?P<slant>italic |oblique )?(?:bold |\d00 )?(?P<size>[\d.]+)px [^;]*"
# A column of the page; at 400 px its text is about 10 px high.
WIDTH = 4.5


@dataclass(frozen=True)
class Picture:
    """A figure ready for the page.

    Attributes:
        svg: the drawing.
        alt: what it shows, for those who do not see it.
        caption: what to look at.
        wide: whether it needs a page's width, and its own scroll box on a narrow one.
    """

    svg: Markup
    alt: str
    caption: Markup | str = ""
    wide: bool = False


@dataclass(frozen=True)
class Look:
    """How one model is drawn everywhere in a report."""

    number: int

    @property
    def colour(self) -> str:
        """Its colour."""
        return MODELS[self.number % len(MODELS)]

    @property
    def css(self) -> str:
        """Its colour in the page."""
        return f"var(--{VARIABLES[self.colour]})"

    @property
    def dash(self) -> Any:
        """Its dash pattern, so that colour is never alone."""
        return DASHES[self._other % len(DASHES)]

    @property
    def marker(self) -> str:
        """Its marker."""
        return MARKERS[self._other % len(MARKERS)]

    @property
    def _other(self) -> int:
        """The number, moved on by one each time that the colours begin again."""
        return self.number + self.number // len(MODELS)


def look(number: int) -> Look:
    """How the model at a place of the ranking is drawn."""
    return Look(number)


def draw(
    build: Callable[[Figure], object],
    alt: str,
    caption: Markup | str = "",
    *,
    size: tuple[float, float] = (WIDTH, 2.8),
    wide: bool = False,
    layout: Literal["constrained"] | None = "constrained",
    place: str = "",
) -> Picture:
    """Build a figure in the report's style and return it as inline SVG.

    Args:
        build: draws on a figure.
        alt: what there is to see, in words.
        caption: what stands below it.
        size: in inches.
        wide: whether it takes the page's whole width.
        layout: of matplotlib.
        place: where on the page it stands, if the same figure stands there more than once: ids must be its own.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The page's own fonts draw the text; what matplotlib's font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        warnings.filterwarnings("ignore", message=".*layout not applied.*")
        figure = Figure(figsize=size, layout=layout)
        FigureCanvasSVG(figure)
        build(figure)
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing, dpi=150)
    alt = clean(alt)
    return Picture(_inline(buffer.getvalue(), alt, place), alt, caption, wide)


def _inline(svg: str, alt: str, place: str = "") -> Markup:
    """An SVG file as an element of the page: no namespaces, ids of its own, colours as variables, short numbers."""
    # matplotlib wrote it just now: nothing in it can be an entity or a document type of somebody else's.
    root = ElementTree.fromstring(svg)
    prefix = "f" + hashlib.sha256((svg + alt + place).encode()).hexdigest()[:10]
    _strip(root)
    _pack(root)
    used = set(re.findall(r"#([\w-]+)", " ".join(_references(root))))
    for element in root.iter():
        _rename(element, prefix, used)
    attributes = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": alt,
        "style": f"--natural: {float(root.attrib['viewBox'].split()[2]):.0f}",
    }
    root.attrib.clear()
    root.attrib.update(attributes)
    # ElementTree escapes text and attributes.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _pack(root: ElementTree.Element) -> None:
    """Store raster images in fewer bytes: grey ones, whose noise nobody reads, with loss, others in fewer colours."""
    for element in root.iter("image"):
        for key, value in element.attrib.items():
            if _local(key) == "href" and value.startswith(PNG):
                element.attrib[key] = _packed(value)


def _packed(address: str) -> str:
    from PIL import Image, features

    if len(address) < WORTH_PACKING or not features.check("webp"):
        return address
    with Image.open(io.BytesIO(base64.b64decode(address[len(PNG) :]))) as opened:
        image = opened.convert("RGBA")
    red, green, blue, _ = (np.asarray(band) for band in image.split())
    grey = np.array_equal(red, green) and np.array_equal(green, blue)
    buffer = io.BytesIO()
    if grey:
        image.save(buffer, "WEBP", quality=GREY_QUALITY)
    else:
        few = image.quantize(COLOURS, method=Image.Quantize.FASTOCTREE)
        few.convert("RGBA").save(buffer, "WEBP", lossless=True, quality=80)
    packed = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return min(address, packed, key=len)


def _strip(element: ElementTree.Element) -> None:
    """Drop namespaces, metadata and style sheets."""
    element.tag = _local(element.tag)
    element.attrib = {_local(key): value for key, value in element.attrib.items()}
    for child in list(element):
        if _local(child.tag) in ("metadata", "style"):
            element.remove(child)
        else:
            _strip(child)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _references(root: ElementTree.Element) -> Iterator[str]:
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "href" or "url(#" in value:
                yield value


def _rename(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    for key, value in list(element.attrib.items()):
        if key == "id":
            if value in used:
                element.attrib[key] = prefix + value
            else:
                del element.attrib[key]
        elif key == "href" and value.startswith("#"):
            element.attrib[key] = f"#{prefix}{value[1:]}"
        elif key in ("style", "clip-path", "fill", "stroke"):
            value = re.sub(r"url\(#", f"url(#{prefix}", value)
            element.attrib[key] = _with_variables(_without_family(value))
        elif key in ("d", "transform", "x", "y", "points", "width", "height"):
            element.attrib[key] = re.sub(r"-?\d+\.\d{2,}", _shorter, value)


def _shorter(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _with_variables(style: str) -> str:
    return re.sub(
        r"#[0-9a-f]{6}\b",
        lambda m: f"var(--{VARIABLES[m[0]]}, {m[0]})" if m[0] in VARIABLES else m[0],
        style,
    )


def _without_family(style: str) -> str:
    """The page's font instead of matplotlib's."""
    return re.sub(r"font-family: [^;]*;? ?", "", re.sub(FONT, _spelt_out, style))


def _spelt_out(found: re.Match[str]) -> str:
    """The shorthand `font: italic 9px …` as properties of their own."""
    slant = "; font-style: italic" if found["slant"] else ""
    return f"font-size: {found['size']}px{slant}"


def band(axes: Axes, x: np.ndarray, draws: np.ndarray, colour: str, **options: Any) -> None:
    """The 50 % and 90 % bands of draws (draw, x)."""
    for low, high, alpha in ((5, 95, 0.18), (25, 75, 0.28)):
        lower, upper = np.percentile(draws, (low, high), axis=0)
        axes.fill_between(x, lower, upper, color=colour, alpha=alpha, lw=0, **options)


def colour_bar(
    figure: Figure, axes: Axes | list[Axes], shown: Any, label: str, **options: Any
) -> None:
    """A slim colour scale with its label, beside one panel or several."""
    bar = figure.colorbar(shown, ax=axes, pad=0.02, shrink=0.95, **options)
    bar.set_label(label)
    bar.ax.spines["outline"].set_visible(False)
