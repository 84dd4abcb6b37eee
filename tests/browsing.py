"""A real browser that pages are tested in (Chromium and chromedriver, as Debian has them; selenium).

TINYFT_SCREENSHOT=FILE in the environment keeps a picture of the chat page; of another page with its name in the file's.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

WHY_NOT = "needs pip install selenium '.[serve]'"
webdriver = pytest.importorskip("selenium.webdriver", reason=WHY_NOT)
pytest.importorskip("starlette", reason=WHY_NOT)
pytest.importorskip("uvicorn", reason=WHY_NOT)

from selenium.webdriver.chrome.service import Service  # noqa: E402 - what stands above may skip all this
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_browser = [pytest.mark.browser,
                 pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")]


def make_browser():
    """A browser without a window; whoever makes it ends it with quit()."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,760",
                     "--disable-background-networking", "--disable-component-update", "--no-first-run"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))


def picture(browser, name: str = "") -> None:
    """Keep a picture, if the environment asks for that."""
    if path := os.environ.get("TINYFT_SCREENSHOT"):
        browser.save_screenshot(str(Path(path).with_stem(f"{Path(path).stem}-{name}")) if name else path)


def emulate(browser, *, width: int = 0, height: int = 760, scheme: str = "") -> None:
    """A window of this size (0: its own), and a colour scheme that the person prefers."""
    if width:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    else:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    features = [{"name": "prefers-color-scheme", "value": scheme}] if scheme else []
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


class Page:
    """What a person does with a page, and sees of it."""

    def __init__(self, browser, url: str):
        self.browser, self.url = browser, url
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(url)

    def find(self, id: str):
        return self.browser.find_element(By.ID, id)

    def text(self, id: str) -> str:
        return self.find(id).text

    def press(self, *keys: str) -> None:
        """Type where the focus is."""
        ActionChains(self.browser).send_keys(*keys).perform()

    @property
    def focus(self) -> str:
        return self.browser.switch_to.active_element.get_attribute("id")

    def wait(self, check, seconds: float = 15.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if result := check():
                return result
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s; the page says {self.said()!r}")

    def said(self) -> str:
        """All that can be read."""
        return self.browser.find_element(By.TAG_NAME, "body").text

    def log(self, *allowed: str) -> None:
        """No error in the console but of kinds that are allowed, and no request to another host."""
        errors = [entry for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"
                  and entry["source"] not in allowed]
        assert errors == []
        events = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        asked = {urlsplit(event["params"]["request"]["url"]) for event in events
                 if event["method"] == "Network.requestWillBeSent"}
        assert {url.netloc for url in asked if url.scheme != "data"} == {urlsplit(self.url).netloc}

    def unnamed(self) -> int:
        """How many fields and buttons have no name that a screen reader could say."""
        return self.browser.execute_script("""
            return [...document.querySelectorAll("input, textarea, select, button")].filter((item) =>
                !item.labels?.length && !item.textContent.trim() && !item.getAttribute("aria-label")).length""")

    def in_sight(self, *ids: str) -> bool:
        """Whether all of these can be seen and reached without scrolling, and the page isn't wider than the window."""
        return self.browser.execute_script("""
            return document.documentElement.scrollWidth <= innerWidth && arguments[0].every((id) => {
                const item = document.getElementById(id), box = item.getBoundingClientRect();
                const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
                return box.width > 0 && box.left >= 0 && box.right <= innerWidth && box.top >= 0
                    && box.bottom <= innerHeight && item.contains(top);
            })""", ids)
