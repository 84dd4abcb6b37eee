"""The pages of the arena and of the review, in a real browser by its keyboard."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from browsing import Page, emulate, make_browser, needs_browser, picture
from fake_arena import Scripted, make_arena, prompt_lines, serving
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tinyft.evaluation.arena_server import ArenaServer
from tinyft.evaluation.journal import Journal
from tinyft.evaluation.review import Review, marks_path, read_replies
from tinyft.evaluation.review_server import ReviewServer
from tinyft.evaluation.votes import read_votes

pytestmark = needs_browser
NAMES = ("first-model", "second-model")
HOSTILE = ("<img src=x onerror=alert(1)><script>document.title='hit'</script></div></section>\x1b[31mred\0 "
           "\u202e\u2067right to left \u05d0\u05d1 \ud800 &amp; " + "w" * 3000 + "\n" * 200 + "the end")
SHOWN = "\u241b[31mred\u2400"  # of its control characters


@pytest.fixture(scope="module")
def browser():
    driver = make_browser()
    yield driver
    driver.quit()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "votes.jsonl"


@pytest.fixture
def narrow(browser):
    """The browser in a phone's window."""
    emulate(browser, width=360, height=640)
    yield browser
    emulate(browser)


class ArenaPage(Page):
    """The arena's page."""

    def ask(self, text: str) -> None:
        self.wait(lambda: self.find("form").is_displayed())
        self.find("message").click()
        self.press(text, Keys.ENTER)

    def wait_for_state(self, text: str) -> None:
        self.wait(lambda: text in self.text("status"))

    def ready(self) -> None:
        self.wait_for_state("Which reply is better?")

    def replies(self) -> list[str]:
        return [self.text("reply-0"), self.text("reply-1")]

    def names(self) -> list[str]:
        return [self.text("name-0"), self.text("name-1")]

    def enabled(self) -> int:
        return len(self.browser.find_elements(By.CSS_SELECTOR, "#votes button:enabled"))


# ---- the arena


def test_a_vote_by_keyboard_and_a_reload(browser, path):
    with serving(ArenaServer(make_arena(path))) as url:
        page = ArenaPage(browser, url)
        page.wait(lambda: page.focus == "message")
        page.press("Which?", Keys.ENTER)
        page.ready()
        assert page.text("prompt") == "Which?" and page.names() == ["A", "B"] and page.enabled() == 4
        assert sorted(page.replies()) == ["I am a reply.", "I am another."]
        assert not any(name in browser.page_source for name in NAMES)
        browser.refresh()
        page.ready()
        assert page.text("prompt") == "Which?" and not any(name in browser.page_source for name in NAMES)
        page.press("2")
        page.wait_for_state("Kept: B is better")
        [vote] = read_votes(path)
        assert page.names() == [f"A: {vote['model_a']}", f"B: {vote['model_b']}"] and vote["winner"] == "model_b"
        picture(browser, "arena")
        browser.refresh()
        page.wait_for_state("Kept: B is better")
        assert page.names() == [f"A: {vote['model_a']}", f"B: {vote['model_b']}"] and page.enabled() == 0
        page.press(Keys.ESCAPE, "1")
        page.find("message").click()
        page.press("Another?", Keys.ENTER)
        page.ready()
        assert page.names() == ["A", "B"] and not any(name in browser.page_source for name in NAMES)
        page.log()
    assert len(read_votes(path)) == 1


def test_a_double_click_is_one_vote_and_two_enters_one_question(browser, path):
    arena = make_arena(path)
    with serving(ArenaServer(arena)) as url:
        page = ArenaPage(browser, url)
        page.wait(lambda: page.focus == "message")
        page.press("Which?", Keys.ENTER, Keys.ENTER)
        page.ready()
        assert len(arena.battles) == 1
        browser.execute_script("""for (const winner of ["a", "a", "b"])
            document.querySelector(`[data-winner=${winner}]`).click();""")
        page.wait_for_state("Kept: A is better")
        assert [vote["winner"] for vote in read_votes(path)] == ["model_a"]


def test_two_windows_at_once(browser, path):
    with serving(ArenaServer(make_arena(path))) as url:
        pages, windows = [], []
        for name in ("Ann", "Bob"):
            browser.switch_to.new_window("window")
            page = ArenaPage(browser, url)
            browser.find_element(By.TAG_NAME, "summary").click()
            page.find("judge").clear()
            page.find("judge").send_keys(name)
            page.ask(f"{name} asks.")
            pages.append(page)
            windows.append(browser.current_window_handle)
        for page, window, key in zip(pages, windows, "34", strict=True):
            browser.switch_to.window(window)
            page.ready()
            page.press(key)
            page.wait_for_state("Kept")
    assert [(vote["prompt"], vote["winner"], vote["judge"]) for vote in read_votes(path)] == [
        ("Ann asks.", "tie", "Ann"), ("Bob asks.", "tie (bothbad)", "Bob")]


def test_no_vote_while_replies_are_written_or_after_one_has_failed(browser, path):
    slow = Scripted("slow-model", "It begins", None, RuntimeError("at 10.1.2.3"))
    with serving(ArenaServer(make_arena(path, slow, Scripted("quick-model", "Quick.")))) as url:
        page = ArenaPage(browser, url)
        page.ask("Which?")
        page.wait(lambda: sorted(page.replies()) == ["It begins▍", "Quick.▍"]
                  or sorted(page.replies()) == ["It begins", "Quick."])
        assert page.enabled() == 0
        page.press("1")
        slow.go_on.set()
        page.wait_for_state("there is nothing to vote on")
        assert page.enabled() == 0 and any("gave no reply" in reply for reply in page.replies())
        for hidden in ("slow-model", "quick-model", "10.1.2.3"):
            assert hidden not in browser.page_source
        page.press("1")
        page.ask("Once more?")
        page.log()
    assert read_votes(path) == []


def test_prompts_of_a_file_one_after_the_other(browser, path):
    with serving(ArenaServer(make_arena(path, prompts=prompt_lines("one", "two")))) as url:
        page = ArenaPage(browser, url)
        page.wait(lambda: page.focus == "next")
        assert page.text("progress") == "0 of 2 prompts" and not page.find("form").is_displayed()
        for prompt in ("one", "two"):
            page.press(Keys.ENTER)
            page.wait(lambda prompt=prompt: page.text("prompt") == prompt)
            page.ready()
            page.press("1")
            page.wait_for_state("Kept")
        assert "All prompts of the file have been voted on" in page.text("status")
        assert page.find("form").is_displayed() and page.text("progress") == "2 of 2 prompts"
        page.press("mine", Keys.ENTER)
        page.ready()
        page.press("s")
        page.wait_for_state("Skipped")
        page.log()
    assert [vote["prompt"] for vote in read_votes(path)] == ["one", "two"]


def test_a_hostile_reply_is_text_and_everything_stays_in_reach(narrow, path):
    arena = make_arena(path, Scripted("first-model", HOSTILE), Scripted("second-model", "z\u0335\u0489" * 5000))
    with serving(ArenaServer(arena)) as url:
        page = ArenaPage(narrow, url)
        page.ask("W" * 500 + "\u202e<b>")
        page.ready()
        hostile = next(reply for reply in page.replies() if "onerror" in reply)
        assert "</script></div>" in hostile and SHOWN in hostile and "&amp;" in hostile
        assert narrow.title == "tinyft arena" and narrow.find_elements(By.CSS_SELECTOR, "main img, main b") == []
        buttons = narrow.find_elements(By.CSS_SELECTOR, "#votes button")
        for number, button in enumerate(buttons):
            narrow.execute_script("arguments[0].id = arguments[1]", button, f"vote-{number}")
        assert page.in_sight(*(f"vote-{number}" for number in range(4)), "skip", "show-ratings")
        assert narrow.execute_script("""return [...document.querySelectorAll("#main, .box, #prompt")].every(
            (item) => item.scrollWidth <= item.clientWidth)"""), "lines are broken, not cut"
        isolation = narrow.execute_script("return getComputedStyle(document.getElementById('reply-0')).unicodeBidi")
        assert isolation == "isolate"
        picture(narrow, "arena-narrow")
        buttons[0].click()
        page.wait_for_state("Kept")
        page.log()
    assert HOSTILE.replace("\ud800", "\ufffd") in (read_votes(path)[0][key] for key in ("reply_a", "reply_b"))


def test_a_megabyte_does_not_freeze_the_page(browser, path):
    long = Scripted("first-model", *["many words " * 1000] * 90, "w" * 50_000)
    with serving(ArenaServer(make_arena(path, long, Scripted("second-model")))) as url:
        page, began = ArenaPage(browser, url), time.monotonic()
        page.ask("Which?")
        page.ready()
        longer = max(page.replies(), key=len)
        assert 20_000 <= len(longer) < 21_000 and "characters are left" in longer
        browser.find_element(By.CSS_SELECTOR, ".more").click()
        assert len(max(page.replies(), key=len)) > 39_000
        page.press("1")
        page.wait_for_state("Kept")
        assert time.monotonic() - began < 10
    assert len(max(read_votes(path)[0]["reply_a"], read_votes(path)[0]["reply_b"], key=len)) > 1_000_000


def test_ratings_and_their_absence(browser, path):
    pytest.importorskip("evalica", reason="needs pip install '.[arena]'")
    with serving(ArenaServer(make_arena(path))) as url:
        page = ArenaPage(browser, url)
        page.wait(lambda: page.focus == "message")
        page.press(Keys.ESCAPE, "r")
        page.wait(lambda: "No ratings: there are no votes yet" in page.said())
        page.press("r")
        page.ask("Which?")
        page.ready()
        page.press("3")
        page.wait_for_state("Kept")
        page.press(Keys.ESCAPE, "r")
        page.wait(lambda: "95 % interval" in page.said())
        assert all(name in page.said() for name in NAMES)
        picture(browser, "ratings")
        page.ask("Which now?")
        page.ready()
        assert not any(name in browser.page_source for name in NAMES)
        page.log()


def test_a_server_that_has_gone_is_said(browser, path):
    with serving(ArenaServer(make_arena(path))) as url:
        page = ArenaPage(browser, url)
        page.ask("Which?")
        page.ready()
    page.press("1")
    page.wait_for_state("the server can't be reached")
    assert page.names() == ["A", "B"] and read_votes(path) == []
    with serving(ArenaServer(make_arena(path))) as url:  # another run doesn't know the battle
        browser.get(url)
        page.wait(lambda: page.focus == "message")


def test_no_vote_is_open_beside_the_ratings(browser, path):
    slow = Scripted("slow-model", "It begins", None, ".")
    with serving(ArenaServer(make_arena(path, slow, Scripted("quick-model", "Quick.")))) as url:
        page = ArenaPage(browser, url)
        page.ask("Which?")
        page.wait(lambda: any("It begins" in reply for reply in page.replies()))
        page.press("r")
        page.wait(lambda: "No ratings" in page.said())
        assert not page.find("skip").is_displayed()
        slow.go_on.set()
        page.ready()
        assert not page.find("votes").is_displayed() and not page.find("vote-view").is_displayed()
        page.press("1", "s")
        page.press("r")
        page.wait(lambda: page.find("votes").is_displayed() and page.find("skip").is_displayed())
        assert page.enabled() == 4 and read_votes(path) == [] and sorted(page.replies()) == ["It begins.", "Quick."]
        page.press("2")
        page.wait_for_state("Kept")
        page.log()


@pytest.mark.parametrize("key", ["1", "s"])
@pytest.mark.parametrize("prompts", [(), ("one", "two")])
def test_a_battle_that_is_lost_is_forgotten(browser, path, key, prompts):
    arena = make_arena(path, prompts=prompt_lines(*prompts))
    with serving(ArenaServer(arena)) as url:
        page = ArenaPage(browser, url)
        if prompts:
            page.wait(lambda: page.focus == "next")
            page.press("n")
        else:
            page.ask("Which?")
        page.ready()
        arena.battles.clear()  # as in a process that was started anew
        page.press(key)
        page.wait_for_state("lost when the arena was started anew")
        assert not page.find("votes").is_displayed() and not page.find("vote-view").is_displayed()
        assert page.focus == ("next" if prompts else "message") and not page.find("skip").is_displayed()
        if prompts:
            page.press("n")
        else:
            page.ask("Which now?")
        page.ready()
        arena.battles.clear()
        browser.refresh()
        page.wait_for_state("lost when the arena was started anew")
        assert page.focus == ("next" if prompts else "message")
    assert read_votes(path) == []


def test_prompts_that_are_given_up_are_said(browser, path):
    arena = make_arena(path, Scripted("a"), Scripted("b", RuntimeError("too long")), prompts=prompt_lines("one"))
    with serving(ArenaServer(arena)) as url:
        page = ArenaPage(browser, url)
        page.wait(lambda: page.focus == "next")
        for n in range(3):
            for _ in range(10):  # what the page says may still be of the battle before, and a key come too early
                page.press("n")
                time.sleep(0.5)
                if len(arena.battles) == n + 1:
                    break
            page.wait(lambda n=n: [battle.state for battle in arena.battles.values()] == ["failed"] * (n + 1))
            page.wait_for_state("there is nothing to vote on")
        page.wait(lambda: page.text("progress") == "0 of 1 prompts, 1 given up")
        page.press("n")
        page.wait_for_state("voted on but 1, at which models failed 3 times")
        assert page.focus == "message"
        browser.execute_script("sessionStorage.clear()")
        browser.refresh()
        page.wait(lambda: page.focus == "message" and not page.find("next").is_displayed())


# ---- the review


@pytest.fixture
def file(tmp_path) -> Path:
    """A file of replies, the last of them hostile. Half a surrogate is refused when it is read."""
    hostile = HOSTILE.encode(errors="ignore").decode()
    entries = [{"instruction": f"Ask {i}", "input": "", "output": f"yes {i}", "family": "ab"[i % 2],
                "model_response": f"reply {i}"} for i in range(5)]
    entries.append({"instruction": hostile, "input": hostile, "output": hostile, "family": "<b>c",
                    "model_response": hostile + "many words " * 100_000})
    path = tmp_path / "replies.json"
    path.write_text(json.dumps(entries))
    return path


def reviewing(file: Path):
    return serving(ReviewServer(Review(read_replies(file), Journal(marks_path(file))), "replies.json"))


def marks(file: Path) -> list[tuple[str, str]]:
    """What is in the file of marks."""
    return [(record["mark"], record["note"]) for record in map(json.loads, marks_path(file).read_text().splitlines())]


def choose(page: Page, id: str, text: str) -> None:
    """Choose from a list, as its keys do."""
    option = next(option for option in page.find(id).find_elements(By.TAG_NAME, "option") if option.text == text)
    option.click()


def test_marks_notes_filters_and_the_download_by_keyboard(browser, file):
    with reviewing(file) as url:
        page = Page(browser, url)
        page.wait(lambda: page.text("reply") == "reply 0")
        assert page.text("expected") == "yes 0" and page.text("share") == "0 of 6 marked"
        page.press("m", "half of it", Keys.ENTER, "2")
        page.wait(lambda: page.text("reply") == "reply 1")
        page.press("1")
        page.wait(lambda: page.text("reply") == "reply 2")
        assert page.text("share").startswith("2 of 6 marked, 75% right (")
        page.press("3")
        page.wait(lambda: page.text("reply") == "reply 3")
        assert marks(file)[-3:] == [("half", "half of it"), ("right", ""), ("wrong", "")]
        browser.refresh()  # the unmarked come first
        page.wait(lambda: page.text("reply") == "reply 3")
        choose(page, "by-mark", "half right")
        page.wait(lambda: page.text("reply") == "reply 0")
        assert page.find("note").get_property("value") == "half of it" and page.text("status").startswith("1 of 1")
        assert page.find("half").get_attribute("aria-pressed") == "true"
        choose(page, "by-mark", "all, in order")
        choose(page, "by-family", "b")
        page.wait(lambda: page.text("status") == "1 of 2: reply 1, b")
        browser.execute_script("document.activeElement.blur()")
        page.press("n")
        page.wait(lambda: page.text("reply") == "reply 3")
        page.press("p")
        page.wait(lambda: page.text("reply") == "reply 1")
        page.press("0")
        page.wait(lambda: page.text("share").startswith("2 of 6 marked, 25% right"))
        page.press("r")
        page.wait(lambda: "all replies 2 of 6 0 1 1 25%" in " ".join(page.text("table").split()))
        picture(browser, "review")
        exported = browser.execute_async_script("fetch('marks.json').then((r) => r.json()).then(arguments[0])")
        assert [(row["index"], row["mark"], row["note"]) for row in exported] == [(0, "half", "half of it"),
                                                                                (2, "wrong", "")]
        choose(page, "by-mark", "right")
        page.wait(lambda: page.find("nothing").is_displayed())
        assert not page.find("right").is_enabled()
        page.log()


def test_a_note_alone_is_kept_while_it_is_written(browser, file):
    with reviewing(file) as url:
        page = Page(browser, url)
        page.wait(lambda: page.text("reply") == "reply 0")
        page.press("m", "to be looked at", Keys.SHIFT)
        page.wait(lambda: marks_path(file).read_text() and marks(file)[-1] == ("", "to be looked at"))
        browser.refresh()
        page.wait(lambda: page.find("note").get_property("value") == "to be looked at")
        page.press("m", "!")
        page.find("next").click()
        page.wait(lambda: page.text("reply") == "reply 1" and page.find("note").get_property("value") == "")
        page.wait(lambda: marks(file)[-1][1].endswith("!"))


def test_a_mark_that_is_not_kept_is_not_shown(browser, file):
    with reviewing(file) as url:
        page = Page(browser, url)
        page.wait(lambda: page.text("reply") == "reply 0")
    page.press("1")
    page.wait(lambda: "can't be reached" in page.text("status"))
    assert page.text("reply") == "reply 0" and page.text("share") == "0 of 6 marked" and not marks(file)
    assert page.find("right").get_attribute("aria-pressed") == "false"


def test_a_note_that_is_not_saved_keeps_the_page_and_is_tried_again(browser, file, monkeypatch):
    review = Review(read_replies(file), Journal(marks_path(file)))
    append, full = review.journal.append, [True]

    def appending(record):
        if full[0]:
            raise OSError(28, "No space left on device")
        append(record)

    monkeypatch.setattr(review.journal, "append", appending)
    with serving(ReviewServer(review, "replies.json")) as url:
        page = Page(browser, url)
        page.wait(lambda: page.text("reply") == "reply 0")
        page.press("m", "mine", Keys.ESCAPE)
        page.wait(lambda: "The note is not saved: " in page.text("status"))
        page.press("n")
        choose(page, "by-mark", "unmarked")
        page.wait(lambda: page.find("by-mark").get_property("value") == "first")
        browser.execute_script("document.activeElement.blur()")
        page.press("1")
        page.wait(lambda: page.find("right").get_attribute("aria-pressed") == "false")
        assert page.text("reply") == "reply 0" and page.find("note").get_property("value") == "mine"
        assert "The note is not saved: " in page.text("status") and "No space left" in page.text("status")
        full[0] = False
        page.wait(lambda: marks(file) == [("", "mine")])  # by itself
        page.wait(lambda: page.text("status").startswith("1 of 6"))
        page.press("m", "!", Keys.ESCAPE, "n")
        page.wait(lambda: page.text("reply") == "reply 1")
        assert marks(file)[-1] == ("", "mine!")


def test_two_windows_keep_each_others_marks_and_notes(browser, file):
    with reviewing(file) as url:
        first = browser.current_window_handle
        page = Page(browser, url)
        page.wait(lambda: page.text("reply") == "reply 0")
        browser.switch_to.new_window("window")
        other = Page(browser, url)
        other.wait(lambda: other.text("reply") == "reply 0")
        other.press("3")
        other.wait(lambda: other.text("reply") == "reply 1")
        browser.switch_to.window(first)
        page.press("m", "a note", Keys.ESCAPE)
        page.wait(lambda: marks(file)[-1] == ("wrong", "a note"))
        page.wait(lambda: page.text("share").startswith("1 of 6 marked"))
        page.press("2")
        page.wait(lambda: page.text("reply") == "reply 1")
        assert ("half", "a note") in marks(file) and ("half", "") not in marks(file)


def test_replies_that_are_the_same_are_marked_at_once(browser, file):
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([entries[0], entries[1], entries[0]]))
    with reviewing(file) as url:
        page = Page(browser, url)
        page.wait(lambda: page.text("reply") == "reply 0")
        page.press("1")
        page.wait(lambda: page.text("share").startswith("2 of 3 marked"))
        choose(page, "by-mark", "right")
        page.wait(lambda: page.text("status").startswith("1 of 2: reply 0"))


def test_hostile_entries_in_a_narrow_window(narrow, file):
    with reviewing(file) as url:
        page = Page(narrow, url)
        page.wait(lambda: page.text("reply") == "reply 0")
        choose(page, "by-family", "<b>c")
        page.wait(lambda: SHOWN in page.text("reply"))
        assert all("onerror" in page.text(name) for name in ("instruction", "input", "expected", "reply"))
        assert narrow.title == "replies.json" and narrow.find_elements(By.CSS_SELECTOR, "main img, b") == []
        assert page.in_sight("right", "half", "wrong", "note", "back", "next", "by-family")
        picture(narrow, "review-narrow")
        page.find("wrong").click()
        page.wait(lambda: page.text("share").startswith("1 of 6 marked, 0% right"))
        page.log()


# ---- both


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_look_and_names(browser, path, file, scheme):
    emulate(browser, scheme=scheme)
    with serving(ArenaServer(make_arena(path))) as arena, reviewing(file) as review:
        for url, focus, last in ((arena, "message", "send"), (review, "main", "right")):
            page = Page(browser, url)
            page.wait(lambda page=page, focus=focus, last=last: page.focus == focus and page.find(last).is_enabled())
            colours = browser.execute_script("const style = getComputedStyle(document.body);"
                                             "return [style.backgroundColor, style.color]")
            back, text = (sum(map(int, colour.strip("rgb()").split(", "))) for colour in colours)
            assert (back > 600 > 200 > text) if scheme == "light" else (back < 200 < 600 < text)
            assert page.unnamed() == 0 and page.find("status").get_attribute("role") == "status"
            page.press(Keys.TAB)
            outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid", "the focus can be seen"
    emulate(browser)
