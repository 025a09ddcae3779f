"""The page in a real browser: it loads nothing, complains of nothing, fits the window, and anybody can read it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
WIDTHS = (400, 1400)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)}")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=found, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, pages):
    """Open a page with the network blocked; returns it, what it asked for and what it complained of."""
    contexts = []

    def open_page(name: str, width: int, scheme: str = "light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page, asked, complaints = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        address = pages[name].as_uri()
        page.route(
            "**/*",
            lambda route: route.continue_() if route.request.url == address else route.abort(),
        )
        page.goto(address)
        return (
            page,
            [url for url in asked if url != address and not url.startswith("data:")],
            complaints,
        )

    yield open_page
    for context in contexts:
        context.close()


EVERY = ("won", "tied", "mapped", "one", "atoms")


@pytest.mark.parametrize("name", EVERY)
def test_it_asks_for_nothing_and_complains_of_nothing(opened, name):
    page, asked, complaints = opened(name, 1400)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.mouse.wheel(0, 20_000)
    assert asked == []
    assert complaints == []


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_the_window(opened, name, width):
    page, _, _ = opened(name, width)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    # A table that is wider scrolls in its own box.
    assert page.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.closest('.scroll') !== null)"
    )


@pytest.mark.parametrize("name", ["mapped", "one", "atoms"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened, name, scheme):
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    for width in WIDTHS:
        page, _, _ = opened(name, width, scheme)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.evaluate(source)
        options = {"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations"]}
        assert page.evaluate(VIOLATIONS, options) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_in_figures_has_contrast_with_the_page(opened, scheme):
    page, _, _ = opened("mapped", 1400, scheme)
    least = page.evaluate(CONTRAST)
    assert least >= 4.5


# Rules and first offenders alone: all that axe has to say is too much for the browser's pipe.
VIOLATIONS = """options => axe.run(document, options)
  .then(found => found.violations.map(v => [v.id, v.nodes[0].html.slice(0, 200)]))"""

# What axe leaves undecided in SVG: the contrast of every text's fill with the page.
CONTRAST = """() => {
  const numbers = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = c => numbers(c).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const page = light(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll('figure svg text, figure svg tspan')];
  return Math.min(...texts.map(t => light(getComputedStyle(t).fill))
    .map(l => (Math.max(l, page) + 0.05) / (Math.min(l, page) + 0.05)));
}"""


def test_it_reads_without_scripts(browser, pages):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(pages["mapped"].as_uri())
    assert page.locator("h2").first.is_visible()
    assert page.locator("figure svg").first.is_visible()
    page.locator("summary").nth(1).click()
    assert page.locator("details").nth(1).locator("table").first.is_visible()
    context.close()


def test_all_of_it_is_printed(opened):
    page, _, _ = opened("mapped", 1400, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    closed = page.locator("details:not([open]) table").first
    assert closed.evaluate("e => e.getBoundingClientRect().height") > 0


def test_the_image_behind_every_map_is_stored_once_and_drawn_in_each(opened, pages):
    page, _, complaints = opened("atoms", 1400)
    drawn = page.locator("figure svg use[href^='#image-']")
    boxes = drawn.evaluate_all(
        "uses => uses.map(use => [use.getAttribute('href'), use.getBoundingClientRect().width])"
    )
    wide = [href for href, width in boxes if width > 100]
    assert len(wide) >= 3
    for href in set(wide):
        assert page.locator(f"svg.stored image{href}").count() == 1
    assert complaints == []
