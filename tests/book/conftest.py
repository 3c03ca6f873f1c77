"""One private copy of the checkout, and one browser, for each test module."""

import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from private_checkout import copy_checkout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = (
        tmp_path_factory.mktemp("checkout") / "mein Häuschen"
    )  # a space and a letter that is not ASCII
    target.mkdir()
    return copy_checkout(target)


def browser_path() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser():
    if browser_path() is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium, though CI is set")
        pytest.skip("no Chromium on this machine (Debian package: chromium)")
    with sync_playwright() as playwright:
        flags = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
        ]
        chromium = playwright.chromium.launch(executable_path=browser_path(), args=flags)
        yield chromium
        chromium.close()
