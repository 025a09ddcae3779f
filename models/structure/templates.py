"""Templates of local motifs: an atom of each class, and where its neighbours stand.

A file of templates is text, one neighbour a line:

    # my sites, in nm
    motif,x,y
    dimer,0.142,0
    kink,0.142,0
    kink,-0.071,0.123

`motif` is the class and `x`, `y` the way to the neighbour. Further columns may be there:

- `variant`: a class may have several templates, told apart by a number;
- `brightness`: of the neighbour's column relative to that of the atom in the middle, 1 where they are alike;
- `tolerance`: how far sites of this template differ among themselves, the standard deviation of a coordinate.

Neighbours must be told out to somewhat beyond the radius in which atoms are looked at. Mirror images and rotations need
not be told.

Example:
    >>> lines = ["motif,x,y", "bond,1,0", "chain,1,0", "chain,-1,0"]
    >>> found = parse_templates(lines, "my sites")
    >>> found.motifs, [template.symmetry for template in found.templates]
    (('bond', 'chain'), [1, 2])
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from ...datasets.kinds import DataError

__all__ = [
    "LIBRARIES",
    "OTHER",
    "Library",
    "Template",
    "library",
    "parse_templates",
    "read_templates",
]

# The class of what no template explains.
OTHER = "other"
# The libraries of this package, by the number that a prior set gives; zero is the user's own.
LIBRARIES = ("own", "shapes", "graphene", "MoS2", "perovskite")
FOLDER = Path(__file__).parent / "motifs"
NEEDED = ("motif", "x", "y")
OPTIONAL = ("variant", "brightness", "tolerance")
# Points of a template that are as near as this, relative to the nearest neighbour, are the same.
SAME = 0.01
MOST_POINTS, MOST_TEMPLATES = 60, 200
MOST_FOLD = 12


@dataclass(frozen=True, eq=False)
class Template:
    """What stands around an atom of one class.

    Attributes:
        motif: the class.
        points: ways to the neighbours, (point, 2), nearer ones first.
        brightness: log of their brightness relative to the atom's own, (point,).
        tolerance: standard deviation of a coordinate between sites of this template.
    """

    motif: str
    points: np.ndarray
    brightness: np.ndarray
    tolerance: float = 0.0

    @cached_property
    def nearest(self) -> float:
        """Distance of the nearest neighbour."""
        return float(np.linalg.norm(self.points, axis=1).min())

    @cached_property
    def symmetry(self) -> int:
        """Order of its rotations."""
        return max(n for n in range(1, MOST_FOLD + 1) if self.like(self.turned(2 * math.pi / n)))

    @property
    def plain(self) -> Template:
        """The same with all neighbours equally bright."""
        return Template(self.motif, self.points, np.zeros(len(self.points)), self.tolerance)

    @property
    def chiral(self) -> bool:
        """Whether no rotation makes it its mirror image."""
        mirror = self.mirrored()
        first = np.arctan2(*mirror.points[0][::-1])
        near = np.abs(np.linalg.norm(self.points, axis=1) - np.linalg.norm(mirror.points[0]))
        angles = np.arctan2(self.points[:, 1], self.points[:, 0])[near < SAME * self.nearest]
        return not any(self.like(mirror.turned(angle - first)) for angle in angles)

    def turned(self, angle: float) -> Template:
        """Turned by an angle in radians."""
        c, s = math.cos(angle), math.sin(angle)
        points = self.points @ np.array([[c, s], [-s, c]])
        return Template(self.motif, points, self.brightness, self.tolerance)

    def mirrored(self) -> Template:
        """Its mirror image."""
        return Template(self.motif, self.points * [1, -1], self.brightness, self.tolerance)

    def like(self, other: Template) -> bool:
        """Whether the points are the same, in whatever order."""
        apart = np.linalg.norm(self.points[:, None] - other.points, axis=2)
        pairs = apart.argmin(1)
        return (
            len(self.points) == len(other.points)
            and bool((apart.min(1) < SAME * self.nearest).all())
            and len(np.unique(pairs)) == len(pairs)
            and bool(np.allclose(self.brightness, other.brightness[pairs], atol=1e-3))
        )

    @cached_property
    def first_shell(self) -> np.ndarray:
        """Distances of the nearest neighbours, up to the first gap of a fifth."""
        distance = np.sort(np.linalg.norm(self.points, axis=1))
        gaps = np.flatnonzero(distance[1:] > 1.2 * distance[:-1])
        return distance[: int(gaps[0]) + 1 if len(gaps) else len(distance)]


@dataclass(frozen=True, eq=False)
class Library:
    """Templates of several classes; the first is what most atoms are thought to be.

    Attributes:
        name: for messages.
        templates: in the order of the file.
    """

    name: str
    templates: tuple[Template, ...]

    @cached_property
    def motifs(self) -> tuple[str, ...]:
        """The classes that have templates."""
        return tuple(dict.fromkeys(template.motif for template in self.templates))

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes, the last that of what no template explains."""
        return (*self.motifs, OTHER)


def read_templates(file: str | os.PathLike[str]) -> Library:
    """The templates in a file of text."""
    path = Path(file).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(
            f"{file}: there is no such file of templates; it is looked for where you are, and beside the script"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as text: {error}") from None
    return parse_templates(text.splitlines(), path.stem)


@lru_cache
def library(number: int) -> Library:
    """A library of this package."""
    return read_templates(FOLDER / f"{LIBRARIES[number]}.csv")


def parse_templates(lines: Sequence[str], name: str) -> Library:
    """The templates in lines of text, as told above.

    Args:
        lines: of the file.
        name: for messages.
    """
    told = [
        (number, line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not told:
        raise DataError(f"templates {name}: the file is empty; its first line is motif,x,y")
    header = [word.strip() for word in next(csv.reader([told[0][1]]))]
    _check_header(name, told[0][0], header)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number, line in told[1:]:
        motif, variant, values = _row(f"templates {name}, line {number}", header, line)
        found.setdefault((motif, variant), []).append(values)
    if not found:
        raise DataError(f"templates {name}: there is a header and no template")
    if len(found) > MOST_TEMPLATES:
        raise DataError(f"templates {name}: at most {MOST_TEMPLATES}, found {len(found)}")
    return Library(name, tuple(_template(name, motif, rows) for (motif, _), rows in found.items()))


def _check_header(name: str, number: int, header: list[str]) -> None:
    known = (*NEEDED, *OPTIONAL)
    missing = [word for word in NEEDED if word not in header]
    strange = [word for word in header if word not in known]
    if missing or strange or len(set(header)) < len(header):
        raise DataError(
            f"templates {name}, line {number}: expected columns {','.join(NEEDED)} and perhaps "
            f"{','.join(OPTIONAL)}, found {','.join(header)}"
        )


def _row(where: str, header: list[str], line: str) -> tuple[str, str, dict[str, float]]:
    """Class, variant and numbers of a line."""
    try:
        fields = [field.strip() for field in next(csv.reader([line], strict=True))]
    except csv.Error as error:
        raise DataError(f"{where}: {error}") from None
    if len(fields) != len(header):
        raise DataError(f"{where}: expected {len(header)} fields, found {len(fields)}")
    given = dict(zip(header, fields, strict=True))
    motif, variant = given.pop("motif"), given.pop("variant", "1")
    if not motif or motif == OTHER:
        raise DataError(f"{where}: a motif needs a name other than {motif!r}")
    values = {}
    for word, field in given.items():
        try:
            values[word] = float(field)
        except ValueError:
            raise DataError(f"{where}: {word} must be a number, found {field!r}") from None
        if not math.isfinite(values[word]):
            raise DataError(f"{where}: {word} must be finite, found {field}")
    if values.get("brightness", 1.0) <= 0 or values.get("tolerance", 0.0) < 0:
        raise DataError(f"{where}: brightness must be positive, and tolerance not negative")
    if values["x"] == values["y"] == 0:
        raise DataError(f"{where}: a neighbour cannot stand where the atom itself is")
    return motif, variant, values


def _template(name: str, motif: str, rows: list[dict[str, float]]) -> Template:
    points = np.array([[row["x"], row["y"]] for row in rows])
    if len(points) > MOST_POINTS:
        raise DataError(
            f"templates {name}: {motif!r} has {len(points)} points, the most is {MOST_POINTS}; "
            "tell only what is within the radius"
        )
    tolerances = {row.get("tolerance", 0.0) for row in rows}
    if len(tolerances) > 1:
        raise DataError(
            f"templates {name}: {motif!r} has several tolerances; give every line the same"
        )
    order = np.argsort(np.linalg.norm(points, axis=1), kind="stable")
    brightness = np.log([row.get("brightness", 1.0) for row in rows])
    made = Template(motif, points[order], brightness[order], tolerances.pop())
    apart = np.linalg.norm(points[:, None] - points, axis=2) + np.eye(len(points)) * 1e9
    if apart.min() < 10 * SAME * made.nearest:
        raise DataError(f"templates {name}: two neighbours of {motif!r} stand in one place")
    return made
