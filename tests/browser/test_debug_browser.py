"""The debug page in real Chromium: what it shows, and that what peers chose stays text."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(60)]
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")


def test_a_stuck_handler_is_found_and_its_connection_closed(browser, start_program):
    """From the tree to the connection to its end; HTML in a name is shown, not run; a silent worker is named."""
    _, url = start_program("tests/browser/debug_server.py")
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    expect = playwright.expect
    page.goto(f"{url}debug/tasks")
    expect(page.locator("#notices")).to_contain_text("Worker 3 did not answer in 5 s")
    stuck = page.locator("summary", has_text="Handler.on_message").or_(
        page.locator("summary", has_text="await trio.sleep_forever()").filter(has_text="WebSocketProtocol")
    )
    stuck.first.click()
    page.locator(".links button").first.click()
    dialog = page.locator("dialog")
    expect(dialog).to_contain_text("Its handler waits here")
    expect(dialog).to_contain_text("<img src=x onerror=")
    dialog.get_by_label("Reason").fill("stuck")
    dialog.get_by_role("button", name="Close this connection").click()
    expect(dialog.get_by_role("status")).to_contain_text("told 1008")
    dialog.get_by_role("button", name="Close", exact=True).click()
    for view in ("Overview", "Connections", "Handlers", "Memory", "Profile"):
        page.get_by_role("link", name=view).click()
        expect(page.locator("nav a[aria-current]")).to_have_text(view)
        expect(page.locator("#content .panel").first).to_be_visible()
    assert "owned" not in page.title()
    assert not errors
    page.close()
