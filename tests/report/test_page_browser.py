"""The page in a browser: it is clicked, pointed at and walked by keyboard, and read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.explain.causes import Cause
from harness.families.family import Part
from harness.report.maps import map_of
from harness.report.page import page
from harness.report.report import Session, SessionRow
from tests.support.pages import a_report, all_equal, canary, rank_shift

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
Open = Callable[..., Any]


def mixed() -> Session:
    """One bit of one expert of 48 x 128, a shift of 60 x 512, a known failure, and one equal."""
    bit, shifted, known = a_report(48, 128, (48,)), rank_shift().rows[1], canary().rows[0]
    bit.differences = [d for d in bit.differences if d.layer == 5 and d.projection == "up_proj"]
    bit.diagnoses = [
        msgspec.structs.replace(
            bit.diagnoses[0], cause=Cause.BIT_FLIP, summary="one bit differs", covers=1, members="0"
        )
    ]
    bit.maps = [
        map_of(Part.DECODER, range(48), 128, lambda _: range(128), bit.differences, bit.diagnoses)
    ]
    known.failed, known.report.issue_owner = False, "vllm"
    rows = [SessionRow(scenario="equal", report=a_report(4, 16)), known,
            SessionRow(scenario="one-bit", report=bit, failed=True), shifted]  # fmt: skip
    return Session(complete=True, began="2026-05-01T03:00:00+00:00", rows=rows)


@cache
def rendered(session: Callable[[], Session]) -> bytes:
    return page(session())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium of this machine."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here: make setup")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a session's page; fails where it asks the network or its script breaks."""
    tab = browser.new_page(viewport={"width": 1600, "height": 1000})
    troubles: list[str] = []
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)
    tab.on(
        "request",
        lambda asked: None if asked.url.startswith("file:") else troubles.append(asked.url),
    )

    def open_page(session: Callable[[], Session], place: str = "") -> Any:
        path = tmp_path / "report.html"
        path.write_bytes(rendered(session))
        tab.goto(path.as_uri() + place)
        return tab

    yield open_page
    tab.close()
    assert troubles == []


SHOWN = "section.scenario.chosen"


def view(tab: Any) -> Any:
    """The map of the scenario that is shown."""
    return tab.locator(f"{SHOWN} .view")


def details(tab: Any) -> str:
    return str(tab.locator("#details").inner_text())


def listed(tab: Any) -> list[str]:
    """The scenarios of the list that can be seen."""
    names: list[str] = tab.locator("nav li:visible .name").all_inner_texts()
    return names


#: The colour in the middle of a cell's upper edge, beside every shape, by layer and expert.
COLOUR = """(view, [layer, expert, size]) => {
  const canvas = view.querySelector('canvas'), c = canvas.getContext('2d');
  const x = 34 + expert * size + size / 2 - view.scrollLeft, y = 16 + layer * size - view.scrollTop;
  return [...c.getImageData(Math.floor(x), Math.floor(y), 1, 1).data].join();
}"""


def cell_size(tab: Any) -> float:
    size: float = tab.evaluate(
        f"panels.get(+document.querySelector('{SHOWN}').dataset.row)[0].size"
    )
    return size


def colours(tab: Any, cells: list[tuple[int, int]]) -> list[str]:
    size = cell_size(tab)
    return [view(tab).evaluate(COLOUR, [layer, expert, size]) for layer, expert in cells]


def click_cell(tab: Any, layer: int, expert: int) -> None:
    size = cell_size(tab)
    view(tab).click(
        position={"x": 34 + (expert + 0.5) * size + 1, "y": 16 + (layer + 0.5) * size + 1}
    )


def test_all_equal(opened: Open) -> None:
    tab = opened(all_equal)
    assert tab.locator("h1").inner_text() == "Every scenario as expected"
    assert "16 equal" in tab.locator(SHOWN).inner_text()
    assert tab.locator("section.causes").count() == 0
    tab.get_by_role("link", name="vl-experts-whole").click()
    tab.locator(f"{SHOWN} h2", has_text="vl-experts-whole").wait_for()
    assert view(tab).count() == 1


def test_a_click_keeps_an_expert(opened: Open) -> None:
    tab = opened(all_equal)
    tab.get_by_role("button", name="gate_proj").click()
    click_cell(tab, 1, 3)
    assert "decoder layer 1 expert 3" in details(tab)
    assert "expert_id=3) at qwen3_moe.py:151" in details(tab)
    view(tab).hover(position={"x": 40, "y": 20})
    assert "expert 3" in details(tab)
    view(tab).press("Escape")
    view(tab).hover(position={"x": 42, "y": 22})
    assert "layer 0 expert 0" in details(tab)


def test_the_canary(opened: Open) -> None:
    tab = opened(canary)
    tab.locator("nav").get_by_role("link", name="vl-fused").click()
    shown = tab.locator(SHOWN)
    assert "the hook received shard_id and expert_id positionally" in shown.inner_text()
    assert "qwen3_vl_moe.py:151" in shown.inner_text()
    shown.locator("summary").click()
    assert "Expecting expert_id argument" in shown.locator("pre").inner_text()


def test_what_is_broken_leads_to_its_place(opened: Open) -> None:
    """From the head to the one expert of 6144, in one click."""
    tab = opened(mixed)
    lines = tab.locator("section.causes tbody tr")
    assert lines.count() == 3
    assert "storage or hardware" in lines.nth(0).inner_text()
    tab.locator("section.causes").get_by_role("link", name="one-bit").click()
    tab.locator("#details h3", has_text="decoder layer 5 expert 48").wait_for()
    assert "one bit differs [bit-flip]" in details(tab)
    assert "up_proj: different" in details(tab)
    assert "gate_proj: equal" in details(tab)


def test_a_rank_shift_by_keyboard(opened: Open) -> None:
    tab = opened(rank_shift)
    tab.get_by_role("button", name="up_proj").click()
    view(tab).focus()
    assert "layer 0 expert 0" in details(tab)
    for key in ("ArrowDown", "ArrowDown", *["ArrowRight"] * 8):
        tab.keyboard.press(key)
    text = details(tab)
    assert "decoder layer 2 expert 8" in text
    assert "up_proj: different" in text
    assert "each rank holds the piece of the next [rolled]" in text
    tab.keyboard.press("ArrowLeft")
    assert "up_proj: equal" in details(tab)
    tab.keyboard.press("n")
    assert "layer 2 expert 8" in details(tab)
    tab.keyboard.press("p")
    assert "layer 2 expert 0" in details(tab)
    tab.keyboard.press("End")
    assert "expert 127" in details(tab)
    tab.keyboard.press("PageDown")
    assert "layer 10 expert 127" in details(tab)


def test_everything_is_reached_by_keyboard(opened: Open) -> None:
    """Tab goes to causes, projections, zoom and the map; each shows that it has the focus."""
    tab = opened(mixed)
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.className + document.activeElement.title"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert tab.evaluate(f"document.activeElement === document.body || {outline} !== 'none'")
    assert {"view", "causeshow only this cause", "larger cells (+)", "up_proj alone"} <= reached


def test_colours_are_the_states(opened: Open) -> None:
    """Every eighth column of 128 is drawn in the colour of a difference, no other."""
    tab = opened(rank_shift)
    drawn = colours(tab, [(1, expert) for expert in range(128)])
    assert {colour for e, colour in enumerate(drawn) if e % 8 == 0} == {drawn[0]}
    assert len(set(drawn)) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_state_has_a_shape_of_its_own(opened: Open, scheme: str) -> None:
    """Drawn in one colour alone, no two are the same, down to the smallest that has shapes."""
    tab = opened(all_equal)
    tab.emulate_media(color_scheme=scheme)
    drawn = tab.evaluate(
        """() => [READABLE, 10, LARGEST].map(size => Object.keys(COLOURS).map(state => {
          const canvas = document.createElement('canvas'), c = context(canvas, size, size);
          const one = Object.fromEntries(Object.keys(COLOURS).map(s => [s, '#808080']));
          cell(c, {...one, ink: '#000000', empty: '#ffffff'}, state, 0, 0, size, false);
          return [...c.getImageData(0, 0, size, size).data].join();
        }))"""
    )
    for cells in drawn:
        assert len(set(cells)) == 5


@pytest.mark.parametrize("number", [0, 1])
def test_cells_are_readable(opened: Open, number: int) -> None:
    """94 x 128 and 60 x 512: the first that differs is in view, at a size that has a shape."""
    tab = opened(rank_shift, f"#s{number}")
    size = cell_size(tab)
    assert size >= tab.evaluate("READABLE")
    seen = view(tab).evaluate("v => [v.scrollLeft, v.clientWidth]")
    first = 256 * size * number
    assert seen[0] <= first <= seen[0] + seen[1] - 34
    assert tab.locator(f"{SHOWN} .overview").is_visible() is bool(number)


def test_zoom(opened: Open) -> None:
    tab = opened(rank_shift, "#s1/decoder/30/300/up_proj")
    before = cell_size(tab)
    tab.get_by_role("button", name="+", exact=True).click()
    view(tab).press("+")
    assert cell_size(tab) > before + 1
    size = cell_size(tab)
    left, width = view(tab).evaluate("v => [v.scrollLeft, v.clientWidth]")
    assert left < 300 * size < left + width  # what is chosen stays in view
    for _ in range(30):
        view(tab).press("+")
    assert cell_size(tab) == 32
    tab.get_by_role("button", name="fit").click()
    assert view(tab).evaluate("v => v.scrollWidth <= v.clientWidth")
    assert "expert 300" in details(tab)


def test_a_link_leads_to_an_expert(opened: Open) -> None:
    tab = opened(rank_shift, "#s1/decoder/30/300/up_proj")
    assert "decoder layer 30 expert 300" in details(tab)
    assert tab.locator("#details [aria-current=true]").inner_text() == "up_proj: different"
    assert tab.locator(f"{SHOWN} h2").inner_text().startswith("✗ qwen3.5-397b")
    view(tab).press("ArrowRight")
    assert tab.evaluate("location.hash") == "#s1/decoder/30/301/gate_proj"
    tab.get_by_role("link", name="down_proj: different").click()
    assert tab.evaluate("location.hash") == "#s1/decoder/30/301/down_proj"
    tab.go_back()


@pytest.mark.parametrize(
    "place",
    ["#", "#s9", "#s1/decoder", "#s1/x/1/1/up_proj", "#s1/decoder/99/1/up_proj", "#nothing/a",
     "#s1/decoder/1/999/up_proj", "#s1/decoder/1/-1/x", "#s1/decoder/1/1/x", "#%"],
)  # fmt: skip
def test_a_link_to_nothing_opens_the_page(opened: Open, place: str) -> None:
    tab = opened(rank_shift, place)
    assert tab.locator(f"{SHOWN} .view").count() == 1


def test_a_filter_by_cause(opened: Open) -> None:
    tab = opened(mixed)
    assert listed(tab) == ["one-bit", "qwen3.5-397b", "vl-fused", "equal"]
    button = tab.locator("button[data-cause=rolled]")
    button.click()
    assert listed(tab) == ["qwen3.5-397b"]
    assert tab.locator(f"{SHOWN} h2").inner_text().startswith("✗ qwen3.5-397b")
    assert "Only rolled: 1 of 4 scenarios." in tab.locator(".filter").inner_text()
    tab.locator("button[data-cause=bit-flip]").click()
    assert listed(tab) == ["one-bit"]
    tab.get_by_role("button", name="show all").click()
    assert len(listed(tab)) == 4
    assert not tab.locator(".filter").is_visible()


def test_a_filter_fades_all_other_cells(opened: Open) -> None:
    tab = opened(rank_shift)
    before = colours(tab, [(1, 0), (1, 1)])
    tab.locator("button[data-cause=rolled]").click()
    after = colours(tab, [(1, 0), (1, 1)])
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_the_largest_opens(opened: Open, record_property: Callable[[str, object], None]) -> None:
    """It opens, and the seconds are kept in JUnit: no test asserts an absolute time."""
    tab = opened(rank_shift)
    load = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd / 1000"
    tab.wait_for_function(f"{load} > 0")
    tab.get_by_role("link", name="qwen3.5-397b").click()
    view(tab).wait_for()
    record_property("seconds to open", tab.evaluate(load))


def test_dark(opened: Open) -> None:
    tab = opened(rank_shift)
    ground = "getComputedStyle(document.body).backgroundColor"
    light, cells = tab.evaluate(ground), colours(tab, [(1, 0), (1, 1)])
    tab.emulate_media(color_scheme="dark")
    assert tab.evaluate(ground) != light
    tab.wait_for_timeout(100)
    assert not set(colours(tab, [(1, 0), (1, 1)])) & set(cells)


def luminance(colour: str) -> float:
    """Of a colour as ``#rrggbb``, by WCAG 2.1."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(opened: Open, scheme: str) -> None:
    """4.5 to 1 for text, 3 to 1 for what a state's shape is drawn with."""
    tab = opened(all_equal)
    tab.emulate_media(color_scheme=scheme)
    value = (
        "name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"
    )
    for text in ("text", "quiet", "good", "bad", "some", "choose"):
        for ground in ("ground", "raised", "good-ground", "bad-ground", "some-ground"):
            assert contrast(tab.evaluate(value, text), tab.evaluate(value, ground)) >= 4.5
    for state in ("differs", "missing", "misplaced"):
        assert contrast(tab.evaluate(value, "ink"), tab.evaluate(value, state)) >= 3


def test_paper(opened: Open) -> None:
    """A map is printed whole, in bands of 128 experts, and light; afterwards all is as before."""
    tab = opened(rank_shift, "#s1")
    tab.emulate_media(color_scheme="dark")
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.emulate_media(media="print", color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator(f"{SHOWN} .whole canvas:visible").count() == 4
    for hidden in ("nav", f"{SHOWN} .view", f"{SHOWN} .tools"):
        assert not tab.locator(hidden).is_visible()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    tab.emulate_media(media="screen", color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    assert view(tab).is_visible()
    assert re.match(rb"%PDF", tab.pdf(format="A4"))


def test_without_a_script_all_of_it_is_read(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_bytes(rendered(mixed))
    with browser.new_context(java_script_enabled=False) as context:
        tab = context.new_page()
        tab.goto((tmp_path / "report.html").as_uri())
        assert tab.locator("section.scenario:visible").count() == 4
        assert "one bit differs" in tab.locator("#s0").inner_text()


def test_a_narrow_window(opened: Open) -> None:
    tab = opened(mixed)
    tab.set_viewport_size({"width": 400, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize(
    ("name", "session", "place", "scheme"),
    [
        ("all-equal", all_equal, "#s1", "light"),
        ("canary", canary, "", "light"),
        ("rank-shift", rank_shift, "#s0/decoder/2/8/up_proj", "light"),
        ("rank-shift-dark", rank_shift, "#s1/decoder/30/300/up_proj", "dark"),
    ],
)
def test_pictures(
    opened: Open, request: pytest.FixtureRequest, name: str, session: Any, place: str, scheme: str
) -> None:
    """Each page can be taken a picture of; ``--write-docs`` keeps it."""
    tab = opened(session, place)
    tab.emulate_media(color_scheme=scheme)
    tab.evaluate("scrollTo(0, 0)")
    tab.wait_for_timeout(100)
    picture = tab.screenshot()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 300_000
    if request.config.getoption("--write-docs"):
        PICTURES.mkdir(exist_ok=True)
        (PICTURES / f"{name}.png").write_bytes(picture)
