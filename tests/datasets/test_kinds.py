import numpy as np
import pytest
import xarray as xr

from atomzoo.datasets.kinds import DataError, dataset, kind_of, measured_kinds, validate
from atomzoo.tests.datasets.examples import examples

ALL = sorted(measured_kinds())
CODES = [
    (kind.name, name)
    for kind in measured_kinds().values()
    for name in kind.codes
    if name != "observed_state"
]


@pytest.fixture
def example(request: pytest.FixtureRequest) -> xr.Dataset:
    return examples()[request.param]


def refused(data: xr.Dataset, *fragments: str) -> None:
    """Check that the data are refused in one line that says all of it."""
    with pytest.raises(DataError) as caught:
        validate(data)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def changed(data: xr.Dataset, name: str, values: np.ndarray) -> xr.Dataset:
    """The data with other values in one variable, everything else kept."""
    return data.assign({name: (data[name].dims, values, data[name].attrs)})


def test_there_is_an_example_of_every_kind() -> None:
    assert sorted(examples()) == ALL
    assert len(ALL) == 10


@pytest.mark.parametrize("example", ALL, indirect=True)
def test_valid_data_come_back_untouched(example: xr.Dataset) -> None:
    before = example.copy(deep=True)
    assert validate(example) is example
    assert example.identical(before)
    assert kind_of(example).name == example.attrs["kind"]


@pytest.mark.parametrize("example", ALL, indirect=True)
def test_a_missing_variable_is_named(example: xr.Dataset) -> None:
    for name in kind_of(example).variables:
        refused(example.drop_vars(name), f"variable {name!r} is missing")


@pytest.mark.parametrize("example", ALL, indirect=True)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_refused(example: xr.Dataset, bad: float) -> None:
    main = kind_of(example).main
    values = example[main].values.astype(float)
    values.flat[-1] = bad
    at = str(tuple(size - 1 for size in values.shape))
    refused(changed(example, main, values), main, "1 of", "not finite", at)


@pytest.mark.parametrize("example", ALL, indirect=True)
def test_values_whose_squares_overflow_are_refused(example: xr.Dataset) -> None:
    main = kind_of(example).main
    values = example[main].values.astype(float) - 1e200
    refused(changed(example, main, values), main, "largest value is 1e+200")


@pytest.mark.parametrize("example", ALL, indirect=True)
@pytest.mark.parametrize("dtype", ["complex64", "<U8", object, "datetime64[s]"])
def test_what_is_no_number_is_refused(example: xr.Dataset, dtype: str) -> None:
    main = kind_of(example).main
    values = example[main].values.astype(int).astype(dtype)
    refused(changed(example, main, values), main, "expected numbers")


@pytest.mark.parametrize("example", ALL, indirect=True)
def test_another_order_of_dimensions_is_refused(example: xr.Dataset) -> None:
    main = kind_of(example).main
    turned = example.transpose(*reversed(example[main].dims), ...)
    refused(turned, main, "expected dimensions", str(turned[main].dims))


@pytest.mark.parametrize("example", ALL, indirect=True)
def test_an_empty_axis_is_refused(example: xr.Dataset) -> None:
    main = kind_of(example).main
    for dim in example[main].dims:
        refused(example.isel({dim: slice(0)}), "is empty")


@pytest.mark.parametrize("example", ALL, indirect=True)
def test_a_variable_of_no_kind_is_refused_unless_it_is_said_to_be_unused(
    example: xr.Dataset,
) -> None:
    refused(example.assign(brightness=1.0), "'brightness' does not belong", "aux_brightness")
    validate(example.assign(aux_brightness=("anything", ["dark", "light"]), true_brightness=1.0))


@pytest.mark.parametrize("example", ALL, indirect=True)
def test_a_truth_that_is_not_finite_is_refused(example: xr.Dataset) -> None:
    refused(example.assign(true_noise=np.nan), "true_noise", "not finite")


@pytest.mark.parametrize("example", ALL, indirect=True)
@pytest.mark.parametrize("unit", [3, ["nm"], None, np.arange(2)], ids=repr)
def test_units_that_are_no_text_are_refused(example: xr.Dataset, unit: object) -> None:
    main = kind_of(example).main
    example[main].attrs["units"] = unit
    refused(example, main)


@pytest.mark.parametrize("example", ALL, indirect=True)
def test_coordinates_are_unique(example: xr.Dataset) -> None:
    for name, coord in example.coords.items():
        refused(
            example.assign_coords({name: (name, coord.values[[0] * coord.size], coord.attrs)}),
            f"coordinate {name!r} repeats values",
        )


@pytest.mark.parametrize(("kind", "name"), CODES)
@pytest.mark.parametrize(
    ("values", "says"),
    [
        (lambda old: old - 1, "codes must be 0 to 2147483647, found -1"),
        (lambda old: old + 2**31, "codes must be 0 to 2147483647"),
        (lambda old: old.astype(float), "expected integer codes, found float64"),
        (lambda old: old > 0, "expected integer codes, found bool"),
    ],
)
def test_codes_are_small_whole_numbers(kind: str, name: str, values, says: str) -> None:
    data = examples()[kind]
    refused(changed(data, name, values(data[name].values)), name, says)


@pytest.mark.parametrize("kind", ["image", "profile"])
@pytest.mark.parametrize("unit", [None, "pm", "m", "", "NM", 3, np.arange(2)], ids=repr)
def test_lengths_are_in_nm_or_unit_cells(kind: str, unit: object) -> None:
    data = examples()[kind]
    data["x"].attrs["units"] = unit
    refused(data, "coordinate 'x'", "expected units nm or unit cell")


@pytest.mark.parametrize("kind", ["image", "profile"])
def test_lengths_are_there_and_increase(kind: str) -> None:
    data = examples()[kind]
    refused(data.drop_vars("x"), "coordinate 'x' is missing")
    refused(data.isel(x=slice(None, None, -1)), "must increase strictly")
    text = data.assign_coords(x=("x", list("abcdefgh")[: data.sizes["x"]], data.x.attrs))
    refused(text, "coordinate 'x': expected numbers")
    bad = data.x.values.copy()
    bad[1] = np.nan
    refused(data.assign_coords(x=("x", bad, data.x.attrs)), "coordinate 'x': 1 of")


def test_coordinates_are_numbers_with_a_unit_not_dates() -> None:
    times = np.array(["2020-01-01", "2020-01-02", "2020-01-03"], dtype="datetime64[s]")
    refused(examples()["field"].assign_coords(time=times), "expected numbers with a unit")


def test_an_image_has_one_unit_and_something_to_see() -> None:
    data = examples()["image"]
    refused(changed(data, "intensity", np.full((6, 5), 3.0)), "every pixel is 3.0")
    refused(data.isel(x=slice(1)), "needs at least 4 along 'x', found 1")
    data["x"].attrs["units"] = "unit cell"
    refused(data, "different units", "convert them to one")


def test_atoms_are_apart_in_nm_and_in_space() -> None:
    data = examples()["atoms"]
    twins = data.position.values.copy()
    twins[3] = twins[1]
    refused(changed(data, "position", twins), "share a position, the first 1 and 3")
    refused(data.drop_vars(["covariance"]).isel(axis=[0]), "2 or 3 axes, found 1")
    data["position"].attrs["units"] = "Å"
    refused(data, "must be in nm, found 'Å'")


def test_atoms_a_picometre_apart_are_two_atoms() -> None:
    validate(dataset("atoms", position=[[0, 0], [0, 1e-3]], units={"position": "nm"}))


@pytest.mark.parametrize(
    "matrix",
    [
        [[1e-6, 0], [0, -1e-6]],
        [[0, 0], [0, 0]],
        [[1e-6, 2e-6], [2e-6, 1e-6]],
        [[1e-6, 3e-9], [0, 1e-6]],
    ],
    ids=["negative", "zero", "indefinite", "lopsided"],
)
def test_a_covariance_of_picometres_is_symmetric_and_positive(matrix: list) -> None:
    data = examples()["atoms"]
    covariance = np.stack([np.diag([1e-6, 1e-6])] * 5)
    validate(changed(data, "covariance", covariance))
    covariance[4] = matrix
    refused(changed(data, "covariance", covariance), "symmetric and positive definite")


@pytest.mark.parametrize("lattice", [None, "hexagonal", 3, np.arange(2)], ids=repr)
def test_a_lattice_says_its_shape(lattice: object) -> None:
    refused(examples()["lattice"].assign_attrs(lattice=lattice), "'square' or 'triangular'")


@pytest.mark.parametrize("periodic", [None, 2, "yes", np.arange(2)], ids=repr)
def test_a_lattice_says_whether_it_repeats(periodic: object) -> None:
    refused(examples()["lattice"].assign_attrs(periodic=periodic), "must be 0 or 1")


def test_a_field_may_have_one_dimension_of_space() -> None:
    data = dataset("field", value=np.ones((4, 6)), x=np.arange(6.0), units={"x": "nm"})
    assert data["value"].dims == ("time", "x")


@pytest.mark.parametrize("kind", [None, 3, "imagine", ["image"], np.arange(2)], ids=repr)
def test_a_kind_is_one_of_ten(kind: object) -> None:
    refused(examples()["image"].assign_attrs(kind=kind), "unknown kind", "tracks")


def test_data_without_a_kind_are_told_how_to_say_it() -> None:
    refused(examples()["image"].drop_attrs(), 'set attrs["kind"]')


def test_what_is_no_dataset_is_refused() -> None:
    with pytest.raises(DataError, match=r"expected an xarray\.Dataset, found ndarray"):
        validate(np.ones(3))  # type: ignore[arg-type]


def test_a_dimension_of_one_may_be_left_out() -> None:
    wall = dataset("profile", value=np.arange(4.0), x=np.arange(4.0), units={"x": "nm"})
    assert dict(wall.sizes) == {"row": 1, "x": 4, "component": 1}
    rows = dataset("profile", value=np.ones((2, 4)), x=np.arange(4.0), units={"x": "nm"})
    assert dict(rows.sizes) == {"row": 2, "x": 4, "component": 1}
    alloy = dataset("lattice", species=[[0, 1], [1, 0]], attrs={"lattice": "square", "periodic": 0})
    assert dict(alloy.sizes) == {"config": 1, "row": 2, "col": 2}


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"value": np.ones(4), "x": np.arange(5.0)}, "do not fit together"),
        ({"value": np.ones(4), "x": np.ones((2, 2))}, "do not fit together"),
        ({"value": np.ones(4), "x": 3.0}, "do not fit together"),
        ({"value": np.ones((1, 1, 4, 1)), "x": np.arange(4.0)}, "expected dimensions"),
        ({"value": np.ones(4), "x": np.arange(4.0), "z": 1.0}, "'z' is not of this kind"),
        ({"value": np.ones(4)}, "units given for ['x']"),
    ],
)
def test_arrays_that_make_no_dataset_are_refused(arrays: dict, says: str) -> None:
    with pytest.raises(DataError) as caught:
        dataset("profile", units={"x": "nm"}, **arrays)
    assert says in str(caught.value)
