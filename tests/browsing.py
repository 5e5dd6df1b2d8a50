"""A real Chromium for tests of pages, and how they wait in it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

#: What a page must not be led astray by, wherever a database has it.
HOSTILE = "</pre></script><script>window.led=1</script><img src=x onerror='window.led=2'>\u202e&amp;{{ 7*7 }}"

#: What plotly finds wrong with the charts as they are drawn.
INVALID_CHARTS = """[...document.querySelectorAll('.plot')].flatMap(plot => {
  const traces = plot.data.map(({uid, ...trace}) => trace);
  return (Plotly.validate(traces, plot.layout) || []).map(found => found.msg);
})"""


@dataclass
class Seen:
    """What a browser saw of a page: requests, and what its console said."""

    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        """Keep what a page asks for and says from now on."""
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a real Chromium; skip where there is none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic", "dev-shm-usage")
    arguments = ["--no-sandbox", "--headless", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=arguments)
        yield started
        started.close()


def until(page: Page, condition: str, seconds: float = 10.0) -> None:
    """Wait for a condition. The page's policy lets nobody evaluate a text in it, as Playwright's own waiting does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(
        f"this never came: {condition}; the page says: {page.evaluate('document.body.innerText')[:2000]}"
    )


def violations(page: Page) -> list[Any]:
    """Return what axe finds wrong with a page as it is now."""
    from axe_playwright_python.sync_playwright import Axe

    return [(each["id"], each["nodes"][0]["html"]) for each in Axe().run(page).response["violations"]]
