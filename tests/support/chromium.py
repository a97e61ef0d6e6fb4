"""Debian's Chromium, driven by Playwright: nothing is downloaded."""

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.support.patience import LONG_S


def require_chromium() -> str:
    """Return the program, or skip the test; in CI fail it."""
    found = shutil.which("chromium")
    if found is None and os.environ.get("ASYNC_HISTORY_CI"):
        pytest.fail("Chromium is not installed: apt-get install chromium")
    if found is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    return found


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser without a window. What is expected of a page may take `LONG_S`."""
    path = require_chromium()
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    expect.set_options(timeout=LONG_S * 1_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()
