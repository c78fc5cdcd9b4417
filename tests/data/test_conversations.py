import json
from collections import Counter

import pytest

from vla.data.chat import ChatFormat
from vla.data.conversations import (
    Conversation,
    encode_conversation,
    mixture_order,
    parse_conversation,
    read_conversations,
)
from vla.data.rows import Row, read_rows
from vla.data.tokenizer import train_tokenizer

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "see you"},
]


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(train_tokenizer(["hello see you"], 300))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def learned_text(chat, encoded):
    return chat.tokenizer.decode(
        [i for i, counts in zip(encoded.ids, encoded.learned, strict=True) if counts]
    )


def test_assistant_turns_are_learned_with_their_end_and_nothing_else(chat):
    encoded = encode_conversation(chat, Conversation(tuple(CHAT), None, 0, ""))
    assert learned_text(chat, encoded) == "hello<|im_end|>see you<|im_end|>"
    # the line break after the last turn is not asked of the model, so the sequence ends before it
    assert chat.tokenizer.decode(encoded.ids) == chat.render(CHAT)[:-1]


def test_only_the_completion_is_learned_where_there_is_one(chat):
    row = {"prompt": CHAT[:4], "completion": "see you"}
    encoded = encode_conversation(chat, parse_conversation(next(iter([_row(row)]))))
    assert learned_text(chat, encoded) == "see you<|im_end|>"
    assert chat.tokenizer.decode(encoded.ids) == chat.render(CHAT)[:-1]


def _row(values):
    return Row(values, "here")


def test_training_sees_the_ids_that_generation_sees(chat):
    encoded = encode_conversation(
        chat, parse_conversation(_row({"prompt": "What is 2 + 2?", "completion": "4"}))
    )
    prompt = chat.prompt([{"role": "user", "content": "What is 2 + 2?"}])
    assert encoded.ids[: len(prompt)] == prompt
    assert encoded.ids[len(prompt) :] == [*chat.encode("4"), chat.tokenizer.eos_token_id]


def test_plain_text_is_learned_whole(chat):
    encoded = encode_conversation(chat, parse_conversation(_row({"text": "hello"})))
    assert all(encoded.learned)
    assert encoded.ids[-1] == chat.tokenizer.eos_token_id


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_files(tmp_path, suffix):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    path = tmp_path / f"data{suffix}"
    if suffix == ".jsonl":
        write(path, rows)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    assert [dict(row.values) for row in read_rows(str(path))] == rows
    assert [c.messages[-1]["content"] for c in read_conversations(str(path))] == ["b", "d"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", r"line 2: no JSON \(Expecting property name"),
        ("[1]", "line 2: a row must be an object with columns, not list"),
        ('{"question": "x"}', "line 2: has the columns question; needed are messages"),
        (
            '{"messages": [{"role": "user", "content": "x"}]}',
            "line 2: messages hold no assistant turn",
        ),
        (
            '{"messages": [{"role": "robot", "content": "x"}]}',
            "line 2: messages has the role 'robot'",
        ),
        ('{"messages": [{"role": "user"}]}', "line 2: messages holds a message without a text"),
        (
            '{"prompt": 3, "completion": "x"}',
            "line 2: prompt must be a text or a list of messages, not int",
        ),
        ('{"text": ""}', "line 2: has the columns text"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message) as error:
        read_conversations(str(path))
    assert str(path) in str(error.value)


def test_missing_and_empty_sources(tmp_path):
    with pytest.raises(ValueError, match="no.jsonl does not exist"):
        read_conversations(str(tmp_path / "no.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="empty.jsonl has no rows"):
        read_conversations(str(tmp_path / "empty.jsonl"))


def test_mixtures_follow_their_weights_and_repeat_no_row_early():
    order = mixture_order([3, 100], [1.0, 3.0], 4000, seed=0)
    share = sum(source == 0 for source, _ in order) / 4000
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
    first = [row for source, row in order if source == 0]
    assert sorted(first[:3]) == [0, 1, 2]
    assert max(Counter(first).values()) - min(Counter(first).values()) <= 1
    assert order == mixture_order([3, 100], [1.0, 3.0], 4000, seed=0)
    with pytest.raises(ValueError, match="weights"):
        mixture_order([3, 100], [1.0, 0.0], 10, seed=0)
