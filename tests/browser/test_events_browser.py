"""Server-Sent Events in real Chromium: what arrives, and coming back."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(60)]
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")


def test_a_browser_comes_back_where_it_was_and_stops_when_told(browser, start_program):
    """Each event arrives once across three connections (by Last-Event-ID, in UTF-8), and 204 ends it."""
    _, url = start_program("tests/browser/events_server.py")
    page = browser.new_page()
    page.goto(url)
    playwright.expect(page.locator("#state")).to_have_text("closed", timeout=20_000)
    expected = []
    for began in (0, 3, 6):
        expected += [f"message: after {began}", "in two lines"]
        expected += [f"\u00b5{number}: {'x' * number}" for number in range(began + 1, began + 4)]
    assert page.locator("#log").text_content().splitlines() == expected
    page.close()
