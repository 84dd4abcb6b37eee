"""The page to chat in, in a real browser by its keyboard."""

from __future__ import annotations

import pytest
from browsing import Page as AnyPage
from browsing import emulate, make_browser, needs_browser, picture
from fake_scheduler import fake_server, rng_of
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from tiny import CONTEXT

pytestmark = needs_browser
STEP = 0.03  # seconds a token


@pytest.fixture(scope="module")
def browser():
    driver = make_browser()
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def slow():
    with fake_server(seconds=STEP) as (url, server):
        yield url, server


class Page(AnyPage):
    """The page to chat in."""

    def replies(self) -> list[str]:
        return [item.text for item in self.browser.find_elements(By.CSS_SELECTOR, "article.assistant")]

    def articles(self) -> list[str]:
        return [item.text for item in self.browser.find_elements(By.CSS_SELECTOR, "article")]

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
    picture(browser)
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
    assert page.unnamed() == 0
    assert browser.find_element(By.CSS_SELECTOR, "[role=log]").get_attribute("aria-live") == "polite"


def test_dark_and_light(browser, slow):
    page, seen = Page(browser, slow[0]), []
    for scheme in ("light", "dark"):
        emulate(browser, scheme=scheme)
        colours = browser.execute_script(
            "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]")
        seen += [[sum(map(int, colour.strip("rgb()").split(", "))) for colour in colours]]
    emulate(browser)
    assert seen[0][0] > 600 > 200 > seen[0][1] and seen[1][0] < 200 < 600 < seen[1][1]
    assert page.focus == "message"
