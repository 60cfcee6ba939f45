"""How long a mail takes from curl to two open pages: ``python tests/browser/appearing.py [options of the example]``.

Not a test: it prints. Each of 20 mails is posted when the one before has appeared. Times are from just before the
request until the mail is in the list of both pages, and until both have drawn it, by the clock of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request

from playwright.sync_api import sync_playwright

NOTE = """
new MutationObserver(records => {
  for (const record of records) for (const row of record.addedNodes) {
    row.dataset.listed = Date.now();
    requestAnimationFrame(() => setTimeout(() => { row.dataset.drawn = Date.now(); }));
  }
}).observe(document.getElementById("mails"), {childList: true});
"""


def main() -> None:
    """Start it, measure, print, end it."""
    command = [sys.executable, "-m", "examples.notifications", "--port", "0", "--rate", "0", *sys.argv[1:]]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = program.stdout.readline().split()[2]
        with sync_playwright() as playwright:
            chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            times = measure(browser, url)
    finally:
        program.terminate()
        program.wait()
    for what, each in zip(("listed", "drawn"), zip(*times, strict=True), strict=True):
        print(
            f"{what} in both of two pages: median {statistics.median(each):.0f} ms, slowest {max(each):.0f} ms"
        )


def measure(browser, url):
    """Milliseconds that each mail took."""
    pages = []
    for _ in range(2):
        page = browser.new_context().new_page()
        page.goto(url)
        page.fill("#name", "ada")
        page.press("#name", "Enter")
        page.wait_for_selector("body[data-state=online]")
        page.wait_for_selector("#mails li")
        page.evaluate(NOTE)
        pages.append(page)
    times = []
    for number in range(20):
        body = json.dumps({"to": "ada", "subject": f"mail {number} of 20"}).encode()
        request = urllib.request.Request(f"{url}mails", body, {"Content-Type": "application/json"})
        before = time.time() * 1000
        urllib.request.urlopen(request).close()
        rows = [page.locator("#mails li[data-drawn]", has_text=f"mail {number} of 20") for page in pages]
        times.append(
            [
                max(int(row.get_attribute(f"data-{what}")) for row in rows) - before
                for what in ("listed", "drawn")
            ]
        )
    return times


if __name__ == "__main__":
    main()
