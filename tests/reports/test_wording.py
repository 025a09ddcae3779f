"""Numbers without false precision, and nothing from a file that does anything."""

import math

import pytest

from atomzoo.reports.wording import (
    axis_label,
    card_html,
    clean,
    gate_value,
    interval,
    mathtext,
    plus_minus,
    shorter_numbers,
    signed,
    significant,
    symbol_html,
    unit,
    units_within,
)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.23456, 0.0412, "1.23 ± 0.04"),
        (1.23456, 0.0123, "1.235 ± 0.012"),
        (1990.234, 17.3, "1990 ± 17"),
        (5.0, 0.097, "5.00 ± 0.10"),
        (123456789.0, 2.3e5, "(1.2346 ± 0.0023) × 10⁸"),
        (2.5e-7, 1.3e-8, "(2.50 ± 0.13) × 10⁻⁷"),
        (-0.02, 0.31, "−0.02 ± 0.31"),
        (0.0, 0.0, "0"),
        (1.6, 0.0, "1.600"),
        (1.6, math.nan, "1.600"),
        (math.nan, 0.1, "–"),
        (None, None, "–"),
    ],
)
def test_a_value_has_the_digits_that_its_error_leaves(value, error, text):
    assert plus_minus(value, error) == text


def test_an_interval_is_rounded_as_its_middle_is():
    assert interval(0.59412, 0.65033, 0.0171) == "0.594 to 0.650"
    assert interval(-2e-9, 3e-9, 1.2e-9) == "(−2.0 to 3.0) × 10⁻⁹"


def test_numbers_keep_their_sign_and_size():
    assert significant(-0.00012) == "−1.2 × 10⁻⁴"
    assert significant(math.inf) == "∞"
    assert signed(0.04) == "0.0"
    assert (signed(0.31), signed(-0.31)) == ("+0.3", "−0.3")
    assert gate_value(1.00206, 1.01) == "1.002"
    assert gate_value(1898.7, 400) == "1899"
    assert gate_value(0.0020, 0.0) == "0.0020"


def test_a_prior_is_shown_with_four_digits_and_whole_numbers_as_they_are():
    assert shorter_numbers("LogNormal(0.875468737354, 1)") == "LogNormal(0.8755, 1)"
    assert shorter_numbers("Normal(-12.3456789, 100000)") == "Normal(-12.35, 100000)"


def test_units_are_printed_with_their_powers():
    assert unit("C/m^2") == "C/m²"
    assert unit("nm**-1") == "nm⁻¹"
    assert unit("1") == ""
    assert units_within("noise of 0.1 C/m^2, x^2") == "noise of 0.1 C/m², x²"
    assert axis_label("x", "unit cell") == "x (unit cell)"


def test_a_name_is_read_as_a_symbol_only_when_it_is_one():
    assert mathtext("P_s") == "$P_{s}$"
    assert mathtext("wall_neel") == "wall_neel"
    assert mathtext("a $x^{$ b") == r"a \$x^{\$ b"
    assert symbol_html("P_s") == "P<sub>s</sub>"
    assert symbol_html("L_c[0, 1]") == "L<sub>c</sub>[0, 1]"
    assert symbol_html("<b>_s") == "&lt;b&gt;_s"


def test_control_and_direction_characters_are_made_visible():
    assert clean("a\x00b\u202ec\nd") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c d"
    assert clean("long" * 100, 10) == "longlongl…"


def test_a_card_is_rendered_and_its_markup_is_not():
    body = """First *stressed* and **strong** words,
    with `code <b>` in them.

    **Assumes** that a * b * c is a product.
    **Fails** on <script>alert(1)</script> and [a](javascript:alert(1)).

    - one
    - two"""
    html = card_html(body)
    assert "<em>stressed</em>" in html
    assert "<strong>strong</strong>" in html
    assert "<code>code &lt;b&gt;</code>" in html
    assert "a * b * c" in html
    assert "<br><strong>Fails</strong>" in html
    assert "<li>one</li><li>two</li>" in html
    assert "<script" not in html
    assert "href" not in html
    assert card_html("") == ""
