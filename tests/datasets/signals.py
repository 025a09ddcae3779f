"""Images as RosettaSciIO writes them."""

import numpy as np


def signal_of(values: np.ndarray, scales: tuple[float, float], units: str) -> dict:
    """An image in RosettaSciIO's form."""
    axes = [
        {
            "name": name,
            "size": size,
            "scale": scales[at],
            "offset": 0.0,
            "units": units,
            "navigate": False,
            "index_in_array": at,
            "_type": "UniformDataAxis",
            "is_binned": False,
        }
        for at, (name, size) in enumerate(zip("yx", values.shape, strict=True))
    ]
    return {
        "data": values,
        "axes": axes,
        "metadata": {"General": {"title": "HAADF"}, "Signal": {"signal_type": ""}},
        "original_metadata": {"blob": "x" * 100_000},
        "attributes": {"_lazy": False, "ragged": False},
        "package_info": {},
        "package": "test",
        "package_version": "0",
        "learning_results": {},
        "models": {},
        "tmp_parameters": {},
    }
