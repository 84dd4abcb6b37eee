"""The page to chat in, in a real browser by its keyboard (Chromium and chromedriver, as Debian has them; selenium).

TINYFT_SCREENSHOT=FILE in the environment keeps a picture of it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from urllib.parse import urlsplit

import pytest
from fake_scheduler import fake_server, rng_of
from tiny import CONTEXT

WHY_NOT = "needs pip install selenium '.[serve]'"
webdriver = pytest.importorskip("selenium.webdriver", reason=WHY_NOT)
pytest.importorskip("starlette", reason=WHY_NOT)
pytest.importorskip("uvicorn", reason=WHY_NOT)

from selenium.webdriver.chrome.service import Service  # noqa: E402 - what stands above may skip all this
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [pytest.mark.browser,
              pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")]
STEP = 0.03  # seconds a token


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,760",
                     "--disable-background-networking", "--disable-component-update", "--no-first-run"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def slow():
    with fake_server(seconds=STEP) as (url, server):
        yield url, server


class Page:
    """What a person does with the page, and sees of it."""

    def __init__(self, browser, url: str):
        self.browser, self.url = browser, url
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(url)

    def find(self, id: str):
        return self.browser.find_element(By.ID, id)

    def press(self, *keys: str) -> None:
        """Type where the focus is."""
        ActionChains(self.browser).send_keys(*keys).perform()

    @property
    def focus(self) -> str:
        return self.browser.switch_to.active_element.get_attribute("id")

    def replies(self) -> list[str]:
        return [item.text for item in self.browser.find_elements(By.CSS_SELECTOR, "article.assistant")]

    def articles(self) -> list[str]:
        return [item.text for item in self.browser.find_elements(By.CSS_SELECTOR, "article")]

    def wait(self, check, seconds: float = 15.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if result := check():
                return result
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s; the page says {self.articles()}, {self.find('status').text!r}")

    def wait_for_the_end(self) -> None:
        self.wait(lambda: self.find("send").is_enabled())

    def set(self, **settings: str) -> None:
        """Fill in fields of the settings."""
        if self.find("settings").get_attribute("open") is None:
            self.browser.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
        for name, value in settings.items():
            field = self.find(name.replace("_", "-"))
            field.clear()
            field.send_keys(value)

    def ask(self, text: str) -> None:
        self.find("message").send_keys(text, Keys.ENTER)

    def log(self, *allowed: str) -> None:
        """No error in the console but of kinds that are allowed, and no request to another host."""
        errors = [entry for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"
                  and entry["source"] not in allowed]
        assert errors == []
        events = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        asked = {urlsplit(event["params"]["request"]["url"]) for event in events
                 if event["method"] == "Network.requestWillBeSent"}
        assert {url.netloc for url in asked if url.scheme != "data"} == {urlsplit(self.url).netloc}


def test_a_conversation_by_keyboard(browser, slow):
    url, server = slow
    page, made_before = Page(browser, url), server.service.scheduler.counts.new_tokens
    page.wait(lambda: page.find("model").text == "fake")
    page.set(temperature="1")
    page.find("message").click()
    page.press("Hello")
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    page.press("you", Keys.ENTER)
    first = page.wait(lambda: page.replies() and page.replies()[0])
    longer = page.wait(lambda: len(page.replies()[0]) > len(first) and page.replies()[0])
    assert longer.startswith(first) and page.articles()[0] == "Hello\nyou"
    assert page.find("stop").is_enabled() and not page.find("send").is_enabled()
    page.wait(lambda: "tokens/s" in page.find("status").text)
    page.press(Keys.ESCAPE)
    page.wait_for_the_end()
    assert page.find("status").text.endswith("stopped") and not page.find("stop").is_enabled()
    page.wait(lambda: server.service.scheduler.idle)
    assert server.service.scheduler.counts.new_tokens - made_before < CONTEXT - 30, "the server has not been told"
    assert page.focus == "message"
    page.log()


def test_settings_and_a_new_chat(browser, slow):
    page = Page(browser, slow[0])
    assert page.focus == "message" and not page.find("key").is_displayed()
    page.set(temperature="1", seed="3", max_tokens="20", system="Be brief.")
    rng = rng_of(3, 0)
    expected = "".join(chr(ord("a") + int(rng.integers(26))) for _ in range(20))
    page.ask("Say word.")
    page.wait_for_the_end()
    assert page.replies() == [expected]
    assert page.find("status").text.startswith("20 tokens, ")
    page.find("new").send_keys(Keys.ENTER)
    assert page.articles() == [] and page.focus == "message" and page.find("hint").is_displayed()
    page.ask("Another question.")
    page.wait_for_the_end()
    assert page.replies() == [expected], "the seed makes it repeatable"
    if path := os.environ.get("TINYFT_SCREENSHOT"):
        browser.save_screenshot(path)
    page.log()


def test_the_stop_button_and_a_new_chat_meanwhile(browser, slow):
    url, server = slow
    page = Page(browser, url)
    page.set(temperature="1")
    for button in ("stop", "new"):
        page.ask("Say word.")
        page.wait(lambda: page.replies() and page.replies()[-1])
        page.find(button).send_keys(Keys.ENTER)
        page.wait_for_the_end()
        page.wait(lambda: server.service.n_open == 0)
    assert page.articles() == []
    page.ask("Say word.")
    page.wait(lambda: len(page.replies()) == 1 and page.replies()[0])
    page.press(Keys.ESCAPE)
    page.wait_for_the_end()
    page.log()


def test_a_long_conversation_loses_its_beginning(browser):
    with fake_server() as (url, _):
        page = Page(browser, url)
        page.set(temperature="1", max_tokens="20")
        for turn in range(5):
            page.ask(f"This is question number {turn}.")
            page.wait_for_the_end()
        assert len(page.replies()) == 5 and all(page.replies())
        assert page.browser.find_elements(By.CLASS_NAME, "error") == []
        page.log("network")  # Chromium reports answers with status 400, from which the page learns what doesn't fit


def test_errors_are_shown_and_the_question_kept(browser):
    with fake_server() as (url, _):
        page = Page(browser, url)
        page.ask("why?")
        page.wait(lambda: page.browser.find_elements(By.CLASS_NAME, "error"))
        assert page.articles() == ["no finite numbers"] and page.find("message").get_property("value") == "why?"
        page.log("network")
    page.press(Keys.ENTER)
    page.wait(lambda: "the server can't be reached" in page.articles()[-1])


def test_an_api_key_is_asked_for(browser):
    with fake_server(api_key="secret") as (url, _):
        page = Page(browser, url)
        page.wait(lambda: page.focus == "key")
        page.press("secret", Keys.TAB)
        page.wait(lambda: page.find("model").text == "fake")
        page.ask("Say word.")
        page.wait_for_the_end()
        assert page.replies()[0]
        page.log("network")


def test_focus_order_and_labels(browser, slow):
    page = Page(browser, slow[0])
    order = [page.focus]
    for _ in range(6):
        page.press(Keys.TAB)
        order.append(page.focus or browser.switch_to.active_element.tag_name)
    assert order == ["message", "send", "body", "new", "summary", "chat", "message"]
    unnamed = browser.execute_script("""return [...document.querySelectorAll("input, textarea, button")].filter(
        (item) => !item.labels?.length && !item.textContent.trim() && !item.getAttribute("aria-label")).length""")
    assert unnamed == 0
    assert browser.find_element(By.CSS_SELECTOR, "[role=log]").get_attribute("aria-live") == "polite"


def test_dark_and_light(browser, slow):
    page, seen = Page(browser, slow[0]), []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": scheme}]})
        colours = browser.execute_script(
            "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]")
        seen += [[sum(map(int, colour.strip("rgb()").split(", "))) for colour in colours]]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert seen[0][0] > 600 > 200 > seen[0][1] and seen[1][0] < 200 < 600 < seen[1][1]
    assert page.focus == "message"
