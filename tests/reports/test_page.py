"""The page: what it must hold, and what nobody can put into it."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tiny  # beside the folder of this file, on the path by conftest.py
import xarray as xr

from atomzoo.datasets.kinds import dataset
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import fit
from atomzoo.inference.runs import RunError
from atomzoo.models.model import Card, find
from atomzoo.reports.compare import Bound, Comparison, Shift, Verdict, compare_runs
from atomzoo.reports.page import report

SHORT = {"ess": 1000}
HOSTILE = """<script>alert("1")</script>'"><img src=x onerror=alert(1)>{{ 7*7 }} $x^{$ \x00\u202e"""


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.pieces: list[str] = []
        self.headings: list[int] = []
        self.feed(self.html)
        self.text = re.sub(r"\s+", " ", " ".join(self.pieces))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_data(self, data):
        self.pieces.append(data)


def check(page: Page) -> None:
    """What holds of every page."""
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "src", "xlink:href", "action", "data", "poster", "srcset"):
            inline = ("#", "data:image/png;base64,", "data:image/webp;base64,")
            assert value.startswith(inline), (tag, name, value[:80])
    assert "@import" not in page.html
    assert not re.search(r"url\((?!#)", page.html)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    labelled = [value for _, name, value in page.attributes if name == "aria-labelledby"]
    assert set(labelled) <= set(ids)
    pictures = [tag for tag, name, value in page.attributes if (name, value) == ("role", "img")]
    assert len(pictures) == page.tags.count("figure")


@pytest.fixture(scope="session")
def read(pages) -> dict[str, Page]:
    """The pages of the comparisons, read once."""
    found = {name: Page(path) for name, path in pages.items()}
    for page in found.values():
        check(page)
    return found


def written(what, folder: Path, **options) -> Page:
    page = Page(report(what, folder / "report.html", **options))
    check(page)
    return page


def test_a_winner_is_the_first_thing_with_its_bounds(won, read):
    page = read["won"]
    assert won.winner == "wall_second_order"
    assert "wall_second_order wins" in page.text
    assert page.text.index("wall_second_order wins") < page.text.index("Data and predictions")
    for bound in won.verdict.bounds:
        assert f"< {bound.value:.2g}" in page.text
    assert "η <" in page.text
    assert "at 95 %" in page.text
    assert "Not fitted" not in page.text


def test_sections_come_in_the_order_in_which_one_reads(won, read):
    page = read["won"]
    order = [
        "Data and predictions",
        "Comparison",
        "Which prior moved the conclusion",
        "Models",
        "To do it again",
    ]
    places = [page.html.index(f">{name}</h2>") for name in order]
    assert places == sorted(places)


def test_a_tie_says_so_and_what_would_decide(tied, read):
    page = read["tied"]
    assert tied.winner is None
    assert "These data cannot discriminate" in page.text
    assert "What would decide." in page.text
    (need,) = tied.verdict.needs
    assert page.text.count(f"{need.more_data:.2g} times as much data") == 1
    assert "C/m²" in page.text
    assert "C/m^2" not in page.text


def test_a_map_has_the_wall_on_it_and_every_model_its_fit(mapped, read):
    page = read["mapped"]
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert any("The fitted wall runs from" in alt for alt in alts)
    for row in mapped.rows:
        assert any(f"Data (points) against {row.model.name}" in alt for alt in alts)
    assert any("Pair plot" in alt for alt in alts)
    assert any("Rank histograms of 64 chains in" in alt for alt in alts)
    assert any("Densities of prior" in alt for alt in alts)


def test_the_table_has_every_model_best_first_with_its_checks(mapped, read):
    page = read["mapped"]
    names = [row.model.name for row in mapped.rows]
    table = page.html[page.html.index(">Comparison</h2>") :]
    table = table[: table.index("</table>")]
    assert re.findall(r"</svg> (wall_\w+)</span>", table) == names
    assert "leave-one-out" in page.text
    for row in mapped.rows:
        failed = sum(not gate.passed for gate in row.gates)
        text = f"✗ {failed} of" if failed else f"✓ {len(row.gates)} of {len(row.gates)} passed"
        assert text in table


def test_the_truth_is_held_against_the_intervals_where_it_is_known(read, tmp_path):
    page = read["mapped"]
    assert "true value" in page.text
    assert "✓ yes" in page.text
    blind = simulate("wall_second_order", seed=2)
    blind = blind.drop_vars([name for name in blind.variables if str(name).startswith("true_")])
    page = written(fit("wall_second_order", blind, **SHORT), tmp_path)
    assert "true value" not in page.text


def test_a_prior_that_changes_the_verdict_is_flagged(won, tmp_path):
    names = [row.model.name for row in won.rows]
    shift = Shift(
        "L_c", "LogNormal(0.123456, 1)", dict.fromkeys(names, -4.0), dict.fromkeys(names, 0.5), True
    )
    caution = (
        f"the verdict changes when the prior L_c ~ {shift.prior} is made half or twice as sharp"
    )
    moved = replace(
        won, rows=won.rows[:2], shifts=[shift], verdict=replace(won.verdict, cautions=(caution,))
    )
    page = written(moved, tmp_path)
    assert "⚠ changes" in page.text
    assert "The verdict changes when the prior L_c ~ LogNormal(0.1235, 1)" in page.text
    assert "Verdict, with cautions" in page.text


def test_models_that_were_not_fitted_and_steps_before_are_told(won, tmp_path):
    told = replace(
        won,
        rows=won.rows[:1],
        skipped={"wall_bloch": "it needs 2 along 'component'"},
        steps=("columns",),
    )
    page = written(told, tmp_path)
    assert "Not fitted: wall_bloch, because it needs 2 along 'component'." in page.text
    assert "Made from the file: columns." in page.text


def test_one_run_says_whether_its_checks_passed(read):
    page = read["one"]
    assert "wall_second_order fitted to wall_second_order" in page.text
    assert "checks" in page.text
    assert ">Comparison<" not in page.html


def test_runs_of_the_same_data_are_compared_also_when_read_from_files(read_back, won, tmp_path):
    page = written(read_back, tmp_path)
    assert "wall_second_order wins" in page.text
    assert ">Comparison</h2>" in page.html


def test_runs_of_other_data_stand_one_after_another(wall_runs, tmp_path):
    other = fit("wall_second_order", simulate("wall_second_order", seed=5), **SHORT)
    page = written([wall_runs[0], other], tmp_path)
    assert page.html.count(">Data and predictions</h3>") == 2
    assert "wins" not in page.text


def test_the_same_model_twice_is_not_compared_with_itself(wall, wall_runs, tmp_path):
    again = fit("wall_second_order", wall, seed=1, **SHORT)
    page = written([wall_runs[0], again], tmp_path)
    assert "wins" not in page.text


def test_a_run_without_evidence_is_reported_and_compared(wall, wall_runs, tmp_path):
    slow = fit("wall_first_order", wall, runner="nuts", chains=2, draws=60, warmup=60)
    assert "log_evidence" not in slow.attrs
    page = written(slow, tmp_path)
    assert "checks failed" in page.text
    page = written([wall_runs[0], slow], tmp_path)
    assert ">Comparison</h2>" in page.html
    assert "Log evidence, difference" not in page.text


@pytest.mark.parametrize("name", ["tiny_classes", "tiny_graph", "tiny_field", "tiny_ising"])
def test_models_of_every_shape_are_reported(name, tmp_path):
    model = tiny.SHAPES[name]
    page = written(fit(model, model.design(), draws=50, proposals=2000), tmp_path)
    assert f"{name} fitted to" in page.text
    expected = {
        "tiny_classes": "most probable kind",
        "tiny_graph": "with probability",
        "tiny_field": "256 elements",
        "tiny_ising": "observed configurations",
    }
    assert expected[name] in page.text


def test_a_single_row_and_a_hundred_rows_and_no_coordinates_are_shown(tmp_path):
    many = simulate("wall_second_order", seed=1, rows=100)
    plain = many.isel(row=[0]).drop_vars("component")
    for data in (many, plain):
        page = written(fit("wall_second_order", data, **SHORT), tmp_path)
        assert "Data (points) against wall_second_order" in page.html


def test_a_run_without_predictions_shows_its_data(wall, tmp_path):
    page = written(fit("wall_second_order", wall, predictive=0, **SHORT), tmp_path)
    assert ">Data and predictions</h2>" in page.html


def hostile_data() -> xr.Dataset:
    x = np.arange(-6.0, 7.0)
    value = np.tanh(x / 2)[None, :, None] + 0.05 * np.random.default_rng(0).standard_normal(
        (4, 13, 2)
    )
    return dataset(
        "profile",
        value=value,
        x=x,
        component=np.array([HOSTILE.replace("\x00", ""), "<b>bold</b>"]),
        units={"x": "unit cell", "value": f"C{HOSTILE}"},
        attrs={"source": f"/data/{HOSTILE}", "title": HOSTILE, "seed": HOSTILE, "scene": HOSTILE},
        true_L_c=2.0,
    )


def test_nothing_in_the_data_becomes_markup(tmp_path):
    run = fit("wall_second_order", hostile_data(), **SHORT)
    page = written(run, tmp_path, title=HOSTILE)
    assert "<script" not in page.html.lower()
    assert "onerror=alert(1)>" in page.text
    assert "49" not in page.html[: page.html.index("</title>")]
    assert "{{ 7*7 }}" in page.text
    assert "\x00" not in page.html
    assert "\u202e" not in page.html


def test_nothing_in_a_run_becomes_markup(wall_runs, tmp_path):
    run = wall_runs[0].copy()
    run.attrs = dict(run.attrs) | {
        "model": HOSTILE,
        "model_title": HOSTILE,
        "prior_set": HOSTILE,
        "runner": HOSTILE,
        "runner_options": json.dumps({HOSTILE: HOSTILE, "draws": 3}),
        "versions": json.dumps({HOSTILE: HOSTILE}),
        "prior": json.dumps({HOSTILE: HOSTILE, "L_c": HOSTILE}),
        "created_at": HOSTILE,
        "seed": HOSTILE,
        "unit": json.dumps([HOSTILE]),
    }
    posterior = run["posterior"].to_dataset().rename({"P_s": HOSTILE.replace("/", "")})
    posterior["L_c"].attrs["units"] = HOSTILE
    run["posterior"] = xr.DataTree(posterior)
    page = written(run, tmp_path)
    assert "<script" not in page.html.lower()
    assert "alert(1)" in page.text


def test_nothing_in_a_model_becomes_markup(won, tmp_path):
    first = won.rows[0]

    class Told:
        card = Card(HOSTILE, f"{HOSTILE} **{HOSTILE}** `{HOSTILE}`\n\n- {HOSTILE}")

    model = replace(first.model, symbols={"L_c": HOSTILE, "noise": "<i>σ</i>"})
    model.__dict__["card"] = Told.card
    verdict = Verdict(
        first.model.name,
        f"{first.model.name} wins: {HOSTILE}",
        bounds=(Bound(first.model.name, HOSTILE, 0.2, HOSTILE),),
        cautions=(HOSTILE,),
    )
    rows = [replace(first, model=model), won.rows[1]]
    page = written(Comparison(won.data, rows, verdict, won.shifts, {HOSTILE: HOSTILE}), tmp_path)
    assert "<script" not in page.html.lower()
    assert "<i>σ" not in page.html
    assert page.html.count("&lt;script&gt;") > 5


def test_a_command_is_quoted_for_the_shell(tmp_path):
    data = hostile_data().assign_attrs(source="/data/a b; rm -rf $HOME.csv")
    run = fit(
        "wall_second_order", data, prior={"set": "vague", "L_c": "LogNormal(0.5, 0.5)"}, **SHORT
    )
    page = written(run, tmp_path)
    assert "atomzoo fit wall_second_order 'a b; rm -rf $HOME.csv'" in page.text
    assert "--prior vague -P 'L_c=LogNormal(0.5, 0.5)'" in page.text
    assert "-O ess=1000" in page.text


def test_the_commands_make_the_same_data_again(tied, read):
    page = read["tied"]
    command = (
        "atomzoo simulate wall_neel -o wall_neel.nc --seed 1 -p cells=25 -p rows=12 -p L_c=2.0"
    )
    assert command in page.text
    call = re.search(r"data = atomzoo\.(simulate\(.*?\)) found", page.text)[1]
    again = eval(call, {"simulate": simulate})  # noqa: S307  our own line, checked above
    xr.testing.assert_identical(again, tied.data)
    assert tied.rows[0].run.attrs["data_sha256"] in page.text


def test_the_page_is_written_whole_or_not_at_all(won, tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    target.write_text("the old one", encoding="utf-8")
    monkeypatch.setattr("atomzoo.reports.page.pictures_of", None)
    with pytest.raises(TypeError):
        report(won, target)
    assert target.read_text(encoding="utf-8") == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("what", [[], [3], xr.DataTree()])
def test_what_is_no_run_is_refused(what, tmp_path):
    with pytest.raises(RunError):
        report(what, tmp_path / "report.html")


def test_a_run_that_does_not_know_its_kind_is_refused(wall_runs, tmp_path):
    run = wall_runs[0].copy()
    run.attrs = {k: v for k, v in run.attrs.items() if k not in ("kind", "data_attrs")}
    with pytest.raises(RunError, match="kind of data"):
        report(run, tmp_path / "report.html")


def test_a_model_from_elsewhere_is_reported_without_its_card(wall_runs, tmp_path):
    run = wall_runs[0].copy()
    run.attrs = dict(run.attrs) | {"model": "wall_from_elsewhere"}
    page = written(run, tmp_path)
    assert "wall_from_elsewhere" in page.text
    assert run.attrs["model_title"].replace("<", "&lt;") in page.text


@pytest.mark.slow
def test_four_models_take_seconds_and_few_megabytes(mapped, read, tmp_path):
    import time

    started = time.process_time()
    path = report(mapped, tmp_path / "report.html")
    assert time.process_time() - started < 10
    assert path.stat().st_size < 5_000_000


def test_the_whole_card_of_a_model_is_there(won, read):
    page = read["won"]
    for name in ("wall_second_order", "wall_first_order"):
        assert find(name).card.title in page.text
    assert "Identifiable" in page.text


def test_a_comparison_made_from_files_is_the_one_made_from_memory(wall, read_back, won):
    again = compare_runs(wall, read_back)
    assert again.as_json() == won.as_json()
