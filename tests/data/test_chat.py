"""Templates of other families on the tiny vocabulary: what ends a turn, how texts begin, and what
they cannot hold."""

import pytest
from tokenizers.processors import TemplateProcessing

from vla.data.chat import ChatFormat, stop_ids
from vla.data.conversations import Conversation, encode_conversation
from vla.data.messages import user_message
from vla.data.preferences import BinaryFeedback, Ranking
from vla.data.tokenizer import train_tokenizer
from vla.text.format_warmup import tag_examples
from vla.text.preference_training import encode_feedback, encode_ranking
from vla.text.problem import Problem

ASK = "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}"
    "{% endif %}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
    + ASK
)
PHI = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<end>\n{% endfor %}" + (
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last "
    "%}<think>\n\n</think>"
    "\n\n{% endif %}{{ m['content'] }}<end>\n{% endfor %}" + ASK
)
NO_END = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<turn>{{ m['content'] }}<end>\n{% endif "
    "%}" + ("{% endfor %}{% if add_generation_prompt %}<turn>{% endif %}")
)
OPENS_THOUGHT = "{% for m in messages %}<turn>{{ m['content'] }}<end>{% endfor %}" + (
    "{% if add_generation_prompt %}<turn><think>\n{% endif %}"
)
SAID = {
    GEMMA: "you<end>",
    PHI: "you<end>",
    THINKING: "<think>\n\n</think>\n\nyou<end>",
    NO_END: "you\n<|im_end|>",
}


def chat_of(template, system=None):
    tokenizer = train_tokenizer(["hello you no"], 320)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = template
    return ChatFormat(tokenizer, system)


@pytest.mark.parametrize("template", SAID, ids=["gemma", "phi", "thinking", "no end"])
def test_every_objective_ends_a_turn_as_the_template_does(template):
    chat, asked = chat_of(template), tuple(user_message("hi"))
    completion = chat.encode(SAID[template])
    prompt = chat.encode(chat.render(asked, add_generation_prompt=True))
    learned = encode_conversation(
        chat, Conversation((*asked, {"role": "assistant", "content": "you"}), None, 0, "")
    )
    assert learned.ids == [*prompt, *completion]
    assert learned.learned == [False] * len(prompt) + [True] * len(completion)
    comparison = encode_ranking(chat, Ranking(asked, ("you", "no"), None, ""))
    assert (comparison.prompt, comparison.completions[0]) == (prompt, completion)
    assert encode_feedback(chat, BinaryFeedback(asked, "you", True, "")).completion == completion
    shown = tag_examples([Problem("hi", "4", "exact", "f")], chat)[0]
    assert shown.prompt == prompt
    assert shown.completion[-1] == completion[-1] == chat.turn_end
    assert chat.turn_end in stop_ids(chat.tokenizer, None)
    assert chat.reply(asked, "you", finished=False) == completion[:-1]


def test_two_turns_of_gemma():
    chat, asked = chat_of(GEMMA), user_message("hi")
    said = {"role": "assistant", "content": "you"}
    encoded = encode_conversation(chat, Conversation((*asked, said, *asked, said), None, 0, ""))
    text = chat.tokenizer.decode(
        [i for i, counts in zip(encoded.ids, encoded.learned, strict=True) if counts]
    )
    assert text == "you<end>you<end>"
    assert chat.tokenizer.decode(encoded.ids) == chat.render([*asked, said, *asked, said])[:-1]
    assert (
        chat.tokenizer.decode(chat.next_turn(asked[0], finished=True))
        == "\n<turn>user\nhi<end>\n<turn>assistant\n"
    )
    assert chat.tokenizer.decode(chat.next_turn(asked[0], finished=False)).startswith(
        "<end>\n<turn>user"
    )


def test_a_template_without_system_messages():
    for template, why in (
        (GEMMA, "System role not supported"),
        (DROPS_SYSTEM, "it ignores the message"),
    ):
        with pytest.raises(
            ValueError, match=f"no system messages, and text.system, .* or text.tool .*{why}"
        ):
            chat_of(template, "be kind").prompt(user_message("hi"))
        row = (
            {"role": "system", "content": "be kind"},
            *user_message("hi"),
            {"role": "assistant", "content": "you"},
        )
        with pytest.raises(
            ValueError, match=f"a.jsonl, line 3: the model's chat template has no system.*{why}"
        ):
            encode_conversation(chat_of(template), Conversation(row, None, 0, "a.jsonl, line 3"))


def test_a_template_that_asks_in_another_way_than_it_answers():
    chat, asked = chat_of(OPENS_THOUGHT), tuple(user_message("hi"))
    with pytest.raises(ValueError, match=r"renders a complete chat differently .*<think>"):
        chat.reply(asked, "you")
    with pytest.raises(ValueError, match="line 1: the chat template renders a complete chat"):
        encode_conversation(
            chat, Conversation((*asked, {"role": "assistant", "content": "you"}), None, 0, "line 1")
        )


def test_plain_texts_begin_as_the_tokenizer_wants():
    chat = chat_of(GEMMA)
    bos, eos = chat.tokenizer.bos_token_id, chat.tokenizer.eos_token_id
    words = chat.encode("hello you")
    assert chat.plain_text("hello you") == [*words, eos]
    beginning = [(chat.tokenizer.bos_token, bos)]
    chat.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{beginning[0][0]} $A", special_tokens=beginning
    )
    assert chat.plain_text("hello you") == [bos, *words, eos]
    assert chat.plain_text(f"{beginning[0][0]}hello you") == [bos, *words, eos]
    assert encode_conversation(chat, Conversation((), "hello you", 0, "")).ids == [bos, *words, eos]
