"""The page in a browser: it is clicked, pointed at and walked by keyboard, and read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.report.page import page
from harness.report.report import Session
from tests.support.pages import all_equal, canary, rank_shift

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
Open = Callable[[Session], Any]


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
    tab = browser.new_page(viewport={"width": 1700, "height": 1050})
    troubles: list[str] = []
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)
    tab.on(
        "request",
        lambda asked: None if asked.url.startswith("file:") else troubles.append(asked.url),
    )

    def open_page(session: Session) -> Any:
        path = tmp_path / "report.html"
        path.write_bytes(page(session))
        tab.goto(path.as_uri())
        return tab

    yield open_page
    tab.close()
    assert troubles == []


def panel(tab: Any, name: str) -> Any:
    return tab.locator(f'section:not([hidden]) canvas[data-panel="{name}"]')


def details(tab: Any) -> str:
    return str(tab.locator("#details").inner_text())


def test_all_equal(opened: Open) -> None:
    tab = opened(all_equal())
    assert tab.locator(".verdict").inner_text() == "every scenario as expected"
    assert "decoder gate_proj: 16 equal" in tab.locator("section:not([hidden])").inner_text()
    tab.get_by_role("link", name="vl-experts-whole").click()
    tab.locator("section:not([hidden]) h2", has_text="vl-experts-whole").wait_for()
    assert panel(tab, "decoder down_proj").count() == 1


def test_a_click_keeps_an_expert(opened: Open) -> None:
    tab = opened(all_equal())
    gate = panel(tab, "decoder gate_proj")
    gate.click(position={"x": 3 * 16 + 5, "y": 16 + 5})
    assert "decoder layer 1 expert 3 gate_proj" in details(tab)
    assert "expert_id=3) at qwen3_moe.py:151" in details(tab)
    gate.hover(position={"x": 5, "y": 5})
    assert "expert 3" in details(tab)
    gate.press("Escape")
    gate.hover(position={"x": 7, "y": 7})
    assert "layer 0 expert 0" in details(tab)


def test_the_canary(opened: Open) -> None:
    tab = opened(canary())
    tab.get_by_role("link", name="vl-fused", exact=True).click()
    shown = tab.locator("section:not([hidden])")
    assert "the hook received shard_id and expert_id positionally" in shown.inner_text()
    assert "qwen3_vl_moe.py:151" in shown.inner_text()
    shown.locator("summary").click()
    assert "Expecting expert_id argument" in shown.locator("pre").inner_text()


def test_a_rank_shift_by_keyboard(opened: Open) -> None:
    tab = opened(rank_shift())
    panel(tab, "decoder up_proj").focus()
    assert "layer 0 expert 0" in details(tab)
    for key in ("ArrowDown", "ArrowDown", *["ArrowRight"] * 8):
        tab.keyboard.press(key)
    text = details(tab)
    assert "decoder layer 2 expert 8 up_proj" in text
    assert "different" in text
    assert "each rank holds the piece of the next [rolled]" in text
    tab.keyboard.press("ArrowLeft")
    assert "equal" in details(tab)
    tab.keyboard.press("End")
    assert "expert 127" in details(tab)


def test_colours_are_the_states(opened: Open) -> None:
    """Every eighth column of 128 is drawn in the colour of a difference, no other."""
    tab = opened(rank_shift())
    drawn = panel(tab, "decoder gate_proj").evaluate(
        """canvas => { const c = canvas.getContext('2d'), w = canvas.width / 128;
        const at = e => [...c.getImageData(e * w + 1, 1, 1, 1).data].join();
        return [...Array(128).keys()].map(at) }"""
    )
    assert {colour for e, colour in enumerate(drawn) if e % 8 == 0} == {drawn[0]}
    assert len(set(drawn)) == 2


def test_the_largest_opens(opened: Open, record_property: Callable[[str, object], None]) -> None:
    """It opens, and the seconds are kept in JUnit: no test asserts an absolute time."""
    tab = opened(rank_shift())
    load = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd / 1000"
    tab.wait_for_function(f"{load} > 0")
    tab.get_by_role("link", name="qwen3.5-397b").click()
    panel(tab, "decoder down_proj").wait_for()
    record_property("seconds to open", tab.evaluate(load))


def test_dark(opened: Open) -> None:
    tab = opened(rank_shift())
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(ground)
    tab.emulate_media(color_scheme="dark")
    assert tab.evaluate(ground) != light


@pytest.mark.parametrize(
    ("name", "session", "scheme"),
    [
        ("all-equal", all_equal, "light"),
        ("canary", canary, "light"),
        ("rank-shift", rank_shift, "light"),
        ("rank-shift-dark", rank_shift, "dark"),
    ],
)
def test_pictures(
    opened: Open, request: pytest.FixtureRequest, name: str, session: Any, scheme: str
) -> None:
    """Each page can be taken a picture of; ``--write-docs`` keeps it."""
    tab = opened(session())
    tab.emulate_media(color_scheme=scheme)
    canvas = tab.locator("section:not([hidden]) canvas")
    if canvas.count():
        canvas.first.click(position={"x": 8 * 7 + 3, "y": 8})
    picture = tab.screenshot()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 300_000
    if request.config.getoption("--write-docs"):
        PICTURES.mkdir(exist_ok=True)
        (PICTURES / f"{name}.png").write_bytes(picture)
