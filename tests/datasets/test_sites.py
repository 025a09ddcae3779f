"""Sites: what the kind holds and what it refuses."""

import numpy as np
import pytest

from atomzoo.datasets.derived.sites import pixel_of, sites
from atomzoo.datasets.files import read, write
from atomzoo.datasets.kinds import DataError, dataset, validate


def image(step=0.02):
    pixels = np.arange(16) * step
    return dataset(
        "image",
        intensity=np.eye(16),
        y=pixels,
        x=pixels,
        units={"y": "nm", "x": "nm", "intensity": "electrons"},
    )


def some(**other):
    known = {"width": 0.04, "gain": 1.0, "least": 0.05, "step": 8.0} | other
    return sites(image(), np.array([[0.1, 0.1]]), np.array([5.0]), **known)


def test_sites_are_written_and_read_back(tmp_path):
    made = some(excess=np.zeros((16, 16)), rejected=np.array([[0.2, 0.2]]))
    write(made, tmp_path / "sites.nc")
    assert read(tmp_path / "sites.nc").identical(made)
    assert made.site.attrs["units"] == "nm"
    assert made.brightness.attrs["units"] == "electrons"


def test_impossible_sites_are_refused():
    for name in ("width", "gain", "least"):
        with pytest.raises(DataError, match=name):
            some(**{name: 0.0})
    with pytest.raises(DataError, match="knots"):
        some(step=0.0)
    dark = some()
    dark["brightness"][0] = -1.0
    with pytest.raises(DataError, match="brightness"):
        validate(dark)


def test_pixels_must_be_square():
    assert pixel_of(image(0.03)) == pytest.approx(0.03)
    with pytest.raises(DataError, match="square"):
        pixel_of(image().assign_coords(y=np.arange(16) * 0.03))
