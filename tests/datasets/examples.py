"""One valid dataset of each kind, with everything that may be in it."""

import numpy as np
import xarray as xr

from atomzoo.datasets.kinds import dataset


def examples() -> dict[str, xr.Dataset]:
    """A fresh example of every kind, by the name of the kind."""
    rng = np.random.default_rng(7)
    nm = {"y": "nm", "x": "nm"}
    shapes = rng.normal(size=(5, 2, 2))
    made = [
        dataset(
            "image",
            intensity=rng.random((6, 5), dtype=np.float32),
            y=np.arange(6) * 0.02,
            x=np.arange(5) * 0.03,
            units={**nm, "intensity": "counts"},
            attrs={"voltage": 60.0, "title": "MoS₂ <HAADF>", "frames": 3},
            true_spacing=0.316,
        ),
        dataset(
            "atoms",
            position=rng.random((5, 2)),
            species=np.array([0, 1, 1, 0, 2]),
            intensity=rng.random(5),
            covariance=shapes @ np.swapaxes(shapes, 1, 2) + np.eye(2),
            axis=np.array(["x", "y"]),
            units={"position": "nm", "covariance": "nm^2"},
            attrs={"species_names": ["Mo", "S", "V"]},
        ),
        dataset(
            "patches",
            intensity=rng.integers(0, 4000, (3, 4, 4), dtype=np.uint16),
            center=rng.random((3, 2)),
            label=np.array([0, 1, 0]),
            frame=np.array([0, 0, 1]),
            units={"center": "nm"},
        ),
        dataset(
            "profile",
            value=rng.normal(size=(2, 7, 2)),
            x=np.arange(7.0) - 3,
            row=np.array([4, 9]),
            component=np.array(["parallel", "perpendicular"]),
            units={"x": "unit cell", "value": "C/m^2"},
            true_x0=np.array([0.1, -0.2]),
        ),
        dataset(
            "lattice",
            species=rng.integers(0, 2, (3, 4, 4)),
            composition=np.array([0.05, 0.55, 0.95]),
            temperature=np.array([1.0, 1.5, 2.0]),
            attrs={"lattice": "triangular", "periodic": 1},
        ),
        dataset(
            "field",
            value=rng.normal(size=(3, 4, 5)),
            time=np.array([0.0, 0.5, 1.0]),
            **{name: np.arange(n) * 0.4 for name, n in (("y", 4), ("x", 5))},
            units={**nm, "time": "s", "value": "C/m^2"},
        ),
        dataset(
            "table",
            value=rng.normal(size=(4, 3)),
            variable=np.array(["strain", "polarization", "composition"]),
            block=np.array([0, 0, 1, 1]),
            attrs={"variable_units": ["1", "C/m^2", "1"]},
            aux_flag=np.array([True, False]),
        ),
        dataset(
            "pairs",
            intensity=rng.random((3, 4, 4)),
            spectrum=rng.random((3, 9)),
            center=rng.random((3, 2)),
            energy=np.linspace(350, 352, 9),
            units={"energy": "eV", "center": "nm"},
        ),
        dataset(
            "states",
            state=rng.integers(0, 3, (4, 5)),
            observed_state=rng.integers(0, 3, (4, 5)),
            time=np.arange(4.0),
            units={"time": "s"},
        ),
        dataset(
            "tracks",
            position=rng.random((4, 3, 2)),
            time=np.arange(4.0),
            units={"time": "s", "position": "nm"},
        ),
    ]
    return {data.attrs["kind"]: data for data in made}
