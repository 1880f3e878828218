"""Conversations as token ids, by the chat templates of models, and which tokens are answers, token by token."""

import pytest
from chat_templates import MISTRAL, TEMPLATES, THINKING, chat_tokenizer
from formatted import CHAT, SYSTEM, answers_of, encode

from hmt_ds.data import DataError
from hmt_ds.data.formats import Format


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [False, True])
def test_the_mask_of_a_chat_template_token_by_token(name, system):
    """It is that of transformers, for the same template with marked answers; the turn's end counts as answer."""
    plain, marked = chat_tokenizer(name), chat_tokenizer(name, marked=True)
    if system and not TEMPLATES[name][-1]:
        with pytest.raises(DataError, match=r"document 0 .*: the chat template refuses the conversation: .*"):
            encode(Format("messages"), plain, messages=[SYSTEM, *CHAT])
        return
    chat = [SYSTEM, *CHAT] if system else CHAT
    expected = marked.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    for tokenizer in (plain, marked):
        ids, answers = encode(Format("messages", 0.25), tokenizer, plain.eos_token_id, messages=chat)
        assert ids == expected["input_ids"] == plain.apply_chat_template(chat, return_dict=True)["input_ids"]
        assert answers == [bool(one) for one in expected["assistant_masks"]]
    end = {"chatml": "<|im_end|>", "llama-3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}[name]
    assert answers_of(plain, ids, answers) == [chat[-3]["content"] + end, chat[-1]["content"] + end]


def test_a_template_of_the_recipe_and_other_names_of_fields():
    """A file's template comes before the tokenizer's own; from and value are read as role and content."""
    tokenizer = chat_tokenizer("mistral")
    tokenizer.chat_template = None
    names = {"user": "human", "assistant": "gpt"}
    other = [{"from": names[one["role"]], "value": one["content"], "weight": None} for one in CHAT]
    assert encode(Format("messages", chat_template=MISTRAL), tokenizer, messages=other) == encode(
        Format("messages"), chat_tokenizer("mistral"), messages=CHAT
    )


def test_a_template_that_writes_the_date():
    """The date is the same on all days and machines, as Llama 3.1 and Mistral write it."""
    tokenizer = chat_tokenizer("chatml")
    date = "{% if not date is defined %}{% set date = strftime_now('%d %b %Y') %}{% endif %}{{ date }}"
    tokenizer.chat_template = date + "{{ strftime_now('%Y-%m-%d') }}" + tokenizer.chat_template
    ids, answers = encode(Format("messages"), tokenizer, messages=CHAT)
    assert tokenizer.decode(ids).startswith("26 Jul 20242024-07-26<|im_start|>user")
    assert [text.removesuffix("<|im_end|>") for text in answers_of(tokenizer, ids, answers)] == [
        CHAT[1]["content"],
        CHAT[3]["content"],
    ]


def test_a_template_that_leaves_thoughts_out():
    """An answer ends where the same words would, if the template writes it in another way at the conversation's end."""
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = THINKING
    thoughtful = [one | {"content": "A jar.</think>" * (one["role"] == "assistant") + one["content"]} for one in CHAT]
    for chat, thoughts in (CHAT, ""), (thoughtful, "A jar."):
        ids, answers = encode(Format("messages"), tokenizer, messages=chat)
        assert ids == tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
        assert answers_of(tokenizer, ids, answers) == [
            CHAT[1]["content"] + "<|im_end|>",
            f"<think>\n{thoughts}</think>\n" + CHAT[3]["content"] + "<|im_end|>",
        ]


def test_a_template_whose_end_depends_on_an_answer_is_refused():
    tokenizer = chat_tokenizer("chatml")
    count = "{{ messages[1]['content'] | length }} letters"
    tokenizer.chat_template = THINKING + "{% if not add_generation_prompt %}" + count + "{% endif %}"
    with pytest.raises(
        DataError, match="message 2: the text that the chat template writes behind this answer depends on"
    ):
        encode(Format("messages"), tokenizer, messages=CHAT)


def test_a_template_that_wants_blocks_is_refused():
    """Of a text it writes nothing but the turns' ends, as those of models that read images."""
    tokenizer = chat_tokenizer("chatml")
    blocks = "{% for block in message['content'] %}{{ block['text'] }}{% endfor %}"
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", f"'' }}}}{blocks}{{{{ ''")
    with pytest.raises(
        DataError, match="message 1: the chat template does not write its text as it is: choose another"
    ):
        encode(Format("messages"), tokenizer, messages=CHAT)


def test_a_template_that_rewrites_what_came_before_is_refused():
    """Its prefixes are not those of the whole, and the mask would be wrong without a word."""
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = "{{ messages | length }} messages: " + tokenizer.chat_template
    with pytest.raises(DataError, match=r"message 2: the chat template renders the messages before this answer diff"):
        encode(Format("messages"), tokenizer, messages=CHAT)


def test_a_template_that_drops_an_answer_is_refused():
    tokenizer = chat_tokenizer("mistral")
    tokenizer.chat_template = (
        "{% for message in messages if message['role'] == 'user' %}{{ message['content'] }}{% endfor %}"
    )
    with pytest.raises(DataError, match="message 2: the chat template does not write its text as it is"):
        encode(Format("messages"), tokenizer, messages=CHAT)
    marked = chat_tokenizer("mistral", marked=True)
    marked.chat_template = marked.chat_template.replace("{% else %}", "{% elif false %}")
    with pytest.raises(DataError, match="message 2: the chat template marks no answer that contains its text"):
        encode(Format("messages"), marked, messages=CHAT)


def test_a_template_that_drops_other_messages_or_calls_is_refused():
    """A model would learn answers without what they are to, or an empty answer in place of a call."""
    tokenizer = chat_tokenizer("chatml")
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "look_up"}}]}
    with pytest.raises(DataError, match="message 2: the chat template does not write its tool calls"):
        encode(Format("messages"), tokenizer, messages=[CHAT[0], call, {"role": "tool", "content": "Denver"}, CHAT[1]])
    plain = tokenizer.chat_template
    tokenizer.chat_template = plain.replace("messages %}", "messages if message['role'] != 'system' %}", 1)
    with pytest.raises(DataError, match="message 1: the chat template does not write its text as it is"):
        encode(Format("messages"), tokenizer, messages=[SYSTEM, *CHAT])
    named = "{{ message.tool_calls | map(attribute='function.name') | join if message.tool_calls }}"
    tokenizer.chat_template = plain.replace("{% endfor %}", f"{named}{{% endfor %}}")
    assert encode(Format("messages"), tokenizer, messages=[CHAT[0], call, CHAT[0], CHAT[1]])
    for odd in ("look_up", ["look_up"], [{"function": "look_up"}], [{"name": None}]):  # the template's own matter
        assert encode(Format("messages"), chat_tokenizer("chatml"), messages=[CHAT[0], CHAT[1] | {"tool_calls": odd}])
