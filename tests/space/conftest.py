"""A Space and a browser for the tests that need them, started once."""

from collections.abc import Iterator
from urllib.parse import urlparse

import pytest
from playwright.sync_api import expect, sync_playwright

from benchmarks.space_process import running_space
from tests.builders.space_browser import CHROMIUM, DESKTOP
from tests.builders.space_server import save_model

expect.set_options(timeout=30_000)  # ms; a machine may be busy


@pytest.fixture(scope="session")
def url(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("space")
    with running_space(save_model(folder / "model"), folder / "run", workers=2) as (address, _):
        yield address


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, url):
    """Open pages whose complaints and requests to other machines fail the test."""
    complaints: list[str] = []
    contexts = []

    def on_request(request):
        address = urlparse(request.url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            complaints.append(f"request to {request.url}")

    def make(path: str = "/", viewport: dict = DESKTOP, **options):
        context = browser.new_context(viewport=viewport, permissions=["clipboard-read", "clipboard-write"], **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", on_request)
        page.goto(url + path)
        page.wait_for_selector("#tab-make .mv-card", timeout=30000)
        page.wait_for_function("MelodySpace.player && document.querySelector('.mv-dock .mv-play')")
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []
