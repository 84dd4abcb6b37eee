"""Prompt styles: what they look like, and that the chat templates they save say the same in ids."""

import json
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import write_tokenizer

from tinyft import load_tokenizer, save_tokenizer
from tinyft.data.entries import Entry, Turn
from tinyft.data.instructions import encode
from tinyft.data.prompts import PROMPT_STYLES, encode_conversation, encode_prompt, end_of_reply, find_style, with_style

jinja2 = pytest.importorskip("jinja2", reason="jinja2 is not installed (pip install jinja2)")
STYLES = list(PROMPT_STYLES)
CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
ROLES = st.sampled_from(["system", "user", "assistant"])
CONVERSATIONS = st.lists(st.builds(Turn, ROLES, st.text(max_size=12), st.just("")
                                   | st.text(min_size=1, max_size=6)), min_size=1, max_size=5)


def make_tokenizer(folder, added=(), **settings):
    """A small BPE whose folder also has these added tokens and settings."""
    vocab = write_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    if added or settings:
        decoder = {str(vocab["<|endoftext|>"]): {"content": "<|endoftext|>", "special": True}}
        decoder |= {str(len(vocab) + i): {"content": content, "special": True} for i, content in enumerate(added)}
        settings |= {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": decoder}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("chat"), CHAT_TOKENS)


def render(template: str, turns, *, reply_follows: bool) -> str:
    """A chat template as other tools render it; a message has an input only where the turn has one."""
    messages = [{"role": turn.role, "content": turn.content} | ({"input": turn.input} if turn.input else {})
                for turn in turns]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, add_generation_prompt=reply_follows)


def text_of(style: str, turns, tokenizer, **options) -> str:
    return tokenizer.decode(encode_conversation(turns, PROMPT_STYLES[style], tokenizer, **options)[0])


ASKED = (Turn("user", "Say it.", "now"),)


@pytest.mark.parametrize("style, expected", [
    ("alpaca", "Below is an instruction that describes a task. Write a response that appropriately completes the "
               "request.\n\n### Instruction:\nSay it.\n\n### Input:\nnow\n\n### Response:\n"),
    ("stanford", "Below is an instruction that describes a task, paired with an input that provides further context. "
                 "Write a response that appropriately completes the request.\n\n### Instruction:\nSay it.\n\n"
                 "### Input:\nnow\n\n### Response:\n"),
    ("phi3", "<|user|>\nSay it.\nnow\n<|assistant|>\n"),
    ("phi3-chat", "<|user|>\nSay it.\nnow<|end|>\n<|assistant|>\n"),
    ("chatml", "<|im_start|>user\nSay it.\nnow<|im_end|>\n<|im_start|>assistant\n"),
])
def test_how_each_style_asks(style, expected, plain):
    assert text_of(style, ASKED, plain, reply_follows=True) == expected


def test_a_system_turn_takes_the_place_of_alpacas_preamble(plain):
    turns = (Turn("system", "Be brief."), *ASKED)
    expected = "Be brief.\n\n### Instruction:\nSay it.\n\n### Input:\nnow\n\n### Response:\n"
    assert text_of("alpaca", turns, plain, reply_follows=True) == expected
    assert text_of("stanford", turns, plain, reply_follows=True) == expected


def test_stanford_without_input_is_alpaca(plain):
    turns = (Turn("user", "Say it."),)
    assert text_of("stanford", turns, plain) == text_of("alpaca", turns, plain)


@pytest.mark.parametrize("style", STYLES)
@settings(deadline=None, max_examples=60)
@given(turns=CONVERSATIONS)
def test_the_template_gives_the_ids_of_the_prompt(style, plain, chat, turns):
    """Replies that stand in it included, whatever they begin and end with."""
    for tokenizer in (plain, chat):
        text = render(PROMPT_STYLES[style].template(tokenizer), turns, reply_follows=True)
        wanted = tokenizer.encode(text, add_special_tokens=False)
        assert encode_prompt(turns, PROMPT_STYLES[style], tokenizer) == wanted


@pytest.mark.parametrize("style", STYLES)
@settings(deadline=None, max_examples=60)
@given(turns=CONVERSATIONS)
def test_the_template_gives_the_ids_of_a_conversation(style, plain, chat, turns):
    """The last reply begins with a letter here: it is encoded apart, and white space could join that of the prompt."""
    turns = [*turns[:-1], Turn(turns[-1].role, f"x{turns[-1].content}", turns[-1].input)]
    replies = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if replies:
        turns[replies[-1]] = Turn("assistant", "x" + turns[replies[-1]].content)
    for tokenizer in (plain, chat):
        text = render(PROMPT_STYLES[style].template(tokenizer), turns, reply_follows=False)
        ids, learned = encode_conversation(turns, PROMPT_STYLES[style], tokenizer)
        assert ids == tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) == len(learned)


@pytest.mark.parametrize("style", STYLES)
def test_replies_and_their_ends_are_learned_and_nothing_else(style, plain, chat):
    turns = (Turn("system", "Be brief."), Turn("user", "One?"), Turn("assistant", "1."), Turn("user", "Two?", "more"),
             Turn("assistant", "2."))
    for tokenizer in (plain, chat):
        ids, learned = encode_conversation(turns, PROMPT_STYLES[style], tokenizer)
        end, end_id = end_of_reply(PROMPT_STYLES[style], tokenizer)
        of_style = PROMPT_STYLES[style].end
        assert end == (of_style if tokenizer is chat and of_style else "<|endoftext|>")
        replies = [id for id, is_reply in zip(ids, learned, strict=True) if is_reply]
        assert tokenizer.decode(replies) == f"1.{end}2.{end}" and replies.count(end_id) == 2


@pytest.mark.parametrize("style", STYLES)
def test_a_folder_says_its_style(style, tmp_path):
    tokenizer = make_tokenizer(tmp_path / "before", CHAT_TOKENS)
    assert find_style(tokenizer) == PROMPT_STYLES["alpaca"]
    tokenizer = with_style(PROMPT_STYLES[style], tokenizer)
    save_tokenizer(tokenizer, tmp_path / "before")
    again = load_tokenizer(tmp_path / "before")
    assert find_style(again) == PROMPT_STYLES[style]
    assert find_style(again, "phi3") == PROMPT_STYLES["phi3"]
    assert (tmp_path / "before" / "chat_template.jinja").read_text("utf-8") == PROMPT_STYLES[style].template(again)


def test_another_template_in_the_configuration_gives_way(tmp_path):
    tokenizer = make_tokenizer(tmp_path, chat_template="{{ messages[0]['content'] }}", pad_token="<|endoftext|>")
    tokenizer = with_style(PROMPT_STYLES["chatml"], tokenizer)
    save_tokenizer(tokenizer, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert "chat_template" not in settings and settings["pad_token"] == "<|endoftext|>"
    assert find_style(load_tokenizer(tmp_path)) == PROMPT_STYLES["chatml"]


def test_a_bos_stands_in_front_once(tmp_path):
    tokenizer = make_tokenizer(tmp_path, ["<s>"], bos_token="<s>", add_bos_token=True)
    bos = tokenizer.token_id("<s>")
    assert tokenizer.bos_tokens == (bos,)
    style = PROMPT_STYLES["phi3"]
    ids = encode_prompt(ASKED, style, tokenizer)
    assert ids[0] == bos and ids.count(bos) == 1
    assert ids == tokenizer.encode(render(style.template(tokenizer), ASKED, reply_follows=True),
                                   add_special_tokens=False)
    assert not encode(Entry.single("Say it.", "", "x"), style, tokenizer).learned[0]


FOREIGN = """{{ bos_token }}{% for m in messages %}
{% if m.role == 'assistant' %}
[{% generation %}{{ m.content | trim }}{{ eos_token }}{% endgeneration %}]
{% else %}
{{ m.role | upper }}: {{ m.content }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
[{% endif %}"""


def test_a_template_of_ones_own(tmp_path, plain):
    (tmp_path / "mine.jinja").write_text(FOREIGN)
    style = find_style(plain, str(tmp_path / "mine.jinja"))
    assert style.end == "<|endoftext|>"
    turns = (Turn("user", "One?", "more"), Turn("assistant", " 1. "), Turn("user", "Two?"), Turn("assistant", "2."))
    assert style.pieces(turns) == [("<|endoftext|>USER: One?\nmore\n[", False), ("1.", True),
                                   ("]\nUSER: Two?\n[", False), ("2.", True), ("]\n", False)]
    ids, learned = encode_conversation(turns, style, plain)
    assert plain.decode(ids) == ("<|endoftext|>USER: One?\nmore\n[1.<|endoftext|>]\nUSER: Two?\n[2.<|endoftext|>]\n")
    assert plain.decode([id for id, flag in zip(ids, learned, strict=True) if flag]) == "1.<|endoftext|>2.<|endoftext|>"
    assert encode_prompt(turns[:3], style, plain) == plain.encode(
        "<|endoftext|>USER: One?\nmore\n[1.<|endoftext|>]\nUSER: Two?\n[")


@pytest.mark.parametrize("template, message", [
    ("{% for x %}", "is no Jinja template"),
    ("{{ raise_exception('only two turns') }}", "can't write down a conversation of user: only two turns"),
    ("{{ messages | length }}", "writes a reply down in another way than it asks for one"),
    ("{% for m in messages %}{{ m.content }}{% endfor %}{{ messages.nothing.more }}", "can't write down"),
])
def test_templates_that_cannot_be_learned_from(template, message, tmp_path, plain):
    (tmp_path / "mine.jinja").write_text(template)
    with pytest.raises(ValueError, match=message) as caught:
        find_style(plain, str(tmp_path / "mine.jinja"))
    assert "mine.jinja" in str(caught.value) and "\n" not in str(caught.value)


def test_a_template_may_ask_for_the_date(tmp_path, plain):
    (tmp_path / "mine.jinja").write_text("{{ strftime_now('%Y') }}{% for m in messages %}>{{ m.content }}{% endfor %}"
                                         "{% if add_generation_prompt %}>{% endif %}")
    style = find_style(plain, str(tmp_path / "mine.jinja"))
    assert style.pieces(ASKED)[0][0].startswith(str(datetime.now().year))
    assert style.end is None


def test_an_unknown_style_names_the_known_ones(plain):
    with pytest.raises(ValueError, match="expected one of alpaca, stanford, phi3, phi3-chat, chatml, or a file"):
        find_style(plain, "vicuna")


def test_without_jinja2_a_foreign_template_is_one_clear_line(plain, monkeypatch):
    monkeypatch.setattr("tinyft.data.chat_template.find_spec", lambda name: None)
    monkeypatch.setattr(plain, "chat_template", FOREIGN)
    with pytest.raises(ValueError, match=r"needs jinja2: pip install jinja2, or choose a style with --prompt-style"):
        find_style(plain)


def test_a_template_without_an_end_is_for_one_reply_only(tmp_path, plain):
    """Several would run into each other, and an end that the template doesn't write would be other ids than its own."""
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                                         "{% if add_generation_prompt %}assistant: {% endif %}")
    style = find_style(plain, str(tmp_path / "mine.jinja"))
    ids, learned = encode_conversation((*ASKED, Turn("assistant", "yes")), style, plain)
    assert plain.decode([id for id, flag in zip(ids, learned, strict=True) if flag]) == "yes<|endoftext|>"
    two = (*ASKED, Turn("assistant", "yes"), Turn("user", "And?"))
    for turns, asked in ((two, True), ((*two, Turn("assistant", "no")), False)):
        with pytest.raises(ValueError, match="puts no token behind a reply, so that its end can't be learned"):
            encode_conversation(turns, style, plain, reply_follows=asked)


def test_a_template_that_breaks_off_is_one_line(tmp_path, plain):
    (tmp_path / "mine.jinja").write_text("{{ 1 / 0 }}")
    with pytest.raises(ValueError, match=r"mine.jinja can't write down a conversation of user: division by zero"):
        find_style(plain, str(tmp_path / "mine.jinja"))


def test_an_end_of_any_characters(tmp_path):
    tokenizer = make_tokenizer(tmp_path, ["🤖"], eos_token="🤖")
    turns = (*ASKED, Turn("assistant", "yes"))
    text = render(PROMPT_STYLES["alpaca"].template(tokenizer), turns, reply_follows=False)
    assert text.endswith("yes🤖")
    assert encode_conversation(turns, PROMPT_STYLES["alpaca"], tokenizer)[0] == tokenizer.encode(text)


@pytest.mark.parametrize("mention", ["{# user, input, reply #}", "An instruction with an input. "])
def test_a_template_that_only_mentions_inputs_gets_them_in_the_content(mention, tmp_path, plain):
    (tmp_path / "mine.jinja").write_text(mention + FOREIGN)
    style = find_style(plain, str(tmp_path / "mine.jinja"))
    assert "USER: Say it.\nnow\n" in style.pieces(ASKED)[0][0]
    (tmp_path / "mine.jinja").write_text(FOREIGN.replace("{{ m.content }}", "{{ m.content }}|{{ m['input'] }}"))
    style = find_style(plain, str(tmp_path / "mine.jinja"))
    assert "USER: Say it.|now\n" in style.pieces(ASKED)[0][0]


@pytest.mark.parametrize("between", [" ", "\n", "\n\n"])
def test_white_space_before_an_end_belongs_to_the_reply(between, tmp_path, plain):
    one = "{{ m.role[0] + ':' + m.content + " + json.dumps(between) + " + eos_token }}"
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}" + one + "{% endfor %}"
                                         "{% if add_generation_prompt %}a:{% endif %}")
    style = find_style(plain, str(tmp_path / "mine.jinja"))
    turns = (Turn("user", "x"), Turn("assistant", "y"), Turn("user", "z"))
    text = "".join(f"{role}:{content}{between}<|endoftext|>" for role, content in zip("uau", "xyz", strict=True)) + "a:"
    assert encode_prompt(turns, style, plain) == plain.encode(text)


def test_an_end_that_is_no_token_is_refused(tmp_path, plain):
    chatml = PROMPT_STYLES["chatml"].template(plain)
    (tmp_path / "mine.jinja").write_text(chatml.replace("<|endoftext|>", "<|im_end|>"))
    style = find_style(plain, str(tmp_path / "mine.jinja"))
    assert encode_prompt(ASKED, style, plain) == encode_prompt(ASKED, PROMPT_STYLES["chatml"], plain)
    with pytest.raises(ValueError, match=r"puts '<\|im_end\|>\\n', which is no token of this tokenizer, behind a"):
        encode_conversation((*ASKED, Turn("assistant", "yes")), style, plain)


def test_what_generation_tags_set_stays_inside(tmp_path, plain):
    (tmp_path / "mine.jinja").write_text("{% set x = 'A' %}{% for m in messages %}{{ x }}{% generation %}"
                                         "{% set x = 'B' %}{{ m.content + eos_token }}{% endgeneration %}{% endfor %}"
                                         "{{ x if add_generation_prompt }}")
    style = find_style(plain, str(tmp_path / "mine.jinja"))
    assert style.pieces(ASKED, reply_follows=True) == [("ASay it.\nnow<|endoftext|>A", False)]


def test_a_second_default_template_is_refused(tmp_path):
    make_tokenizer(tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "default.jinja").write_text("{{ messages }}")
    with pytest.raises(ValueError, match="a second chat template"):
        load_tokenizer(tmp_path)
