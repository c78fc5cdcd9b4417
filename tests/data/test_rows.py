import json

import pytest

from vla.data.messages import messages_to_text, parse_messages, parse_prompt, prompt_key
from vla.data.rows import RowError, RowReader, read_rows
from vla.text.hash_split import is_held_out
from vla.text.problem_families import make_family

FINE = {"prompt": "hi", "answer": "1"}


def values(path):
    return [dict(row.values) for row in read_rows(str(path))]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    for name, content in (
        ("a.jsonl", b'\xef\xbb\xbf{"prompt": "hi", "answer": "1"}\r\n\r\n'),
        ("b.json", b'\xef\xbb\xbf[{"prompt": "hi", "answer": "1"}]'),
        ("c.json", b'{"prompt": "hi", "answer": "1"}\n'),
        ("d.csv", b"\xef\xbb\xbfprompt,answer\r\nhi,1\r\n\r\n"),
        ("e.TSV", b"prompt\tanswer\nhi\t1\n"),
    ):
        (tmp_path / name).write_bytes(content)
        assert values(tmp_path / name) == [FINE], name


def test_a_csv_row_is_named_by_the_line_on_which_it_begins(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,answer\n"two\nlines",1\nhi,\n')
    rows = list(read_rows(str(tmp_path / "a.csv")))
    assert [(dict(row.values), row.where.rsplit(", ", 1)[1]) for row in rows] == [
        ({"prompt": "two\nlines", "answer": "1"}, "line 2"),
        ({"prompt": "hi"}, "line 4"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"prompt": "hi"}\n{"prompt": "Gr\xf6\xdfe"}\n',
            "a.jsonl, line 2: not UTF-8 .byte 0xf6.: save",
        ),
        ("a.json", b'[{"prompt":\n"Gr\xf6\xdfe"}]', "a.json, line 2: not UTF-8"),
        ("a.csv", b"prompt\nGr\xf6\xdfe\n", "a.csv, line 2: not UTF-8"),
        ("a.json", b'[{"prompt": "hi"},', "a.json, line 1: no JSON"),
        ("a.jsonl", b'{"prompt": ' + b"[" * 100_000, "a.jsonl, line 1: no JSON"),
        (
            "a.jsonl",
            b'{"prompt": ' + b"9" * 5000 + b"}",
            "a.jsonl, line 1: no JSON that can be read",
        ),
        ("a.jsonl", b'{"prompt": "\\ud83d"}', "a.jsonl, line 1: holds half of a surrogate pair"),
        (
            "a.jsonl",
            b'{"messages": [{"a": "\\udc00"}]}',
            "a.jsonl, line 1: holds half of a surrogate pair",
        ),
        (
            "a.csv",
            b"prompt,answer\nhi\n",
            "a.csv, line 2: has 1 values, the header names 2 columns",
        ),
        ("a.csv", b'prompt\n"hi\n', "a.csv, line 2: no CSV"),
        ("a.parquet", b"no table", "a.parquet: no parquet table that can be read, from row 1 on"),
        ("a.txt", b"hi\n", "a.txt: the ending .txt is not read: give one of .jsonl"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        values(tmp_path / name)


def test_fields_that_are_null_in_a_table_are_fields_that_a_row_has_not(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    rows = [
        {"tests": [{"call": "f(1)", "output": "1"}]},
        {"tests": [{"input": "1", "output": "1"}], "answer": "2"},
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == [
        {"tests": [{"call": "f(1)", "output": "1"}]},
        {"tests": [{"input": "1", "output": "1"}]},
    ]
    lines(tmp_path / "b.jsonl", {"schema": {"const": None}, "answer": None})
    assert values(tmp_path / "b.jsonl") == [{"schema": {"const": None}}]


def test_bad_rows_are_left_out_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\nbroken\n[]\n{"n": "\xff"}\n{"n": -1}\n{"n": 2}\n')

    def positive(row):
        if row.values["n"] < 0:
            raise ValueError(f"{row.where}: n is negative")
        return row.values["n"]

    with pytest.raises(
        RowError, match=r"line 2: no JSON .*text.on_bad_row=skip leaves such rows out"
    ):
        RowReader().read(str(path), positive)
    reader = RowReader("skip")
    assert reader.read(str(path), positive) == [1, 2]
    found = reader.results()["rows"][str(path)]
    assert (found["rows"], found["left out"], len(found["first left out"])) == (6, 4, 4)
    assert found["first left out"][3] == f"{path}, line 5: n is negative"
    assert reader.lines() == [
        f"{path}: 4 of 6 rows left out (text.on_bad_row=skip), the first: {path}, line 2: no JSON "
        "(Expecting value at"
        " column 1)"
    ]
    path.write_text("broken\n")
    with pytest.raises(
        ValueError, match=r"a.jsonl: none of its 1 rows can be used; the first: .*line 1"
    ):
        RowReader("skip").read(str(path), positive)


def test_messages_in_the_forms_that_people_write():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert parse_messages([{"role": "user", "content": parts}], "user", "", "x") == [
        {"role": "user", "content": "ab"}
    ]
    chat = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "a"},
    ]
    roles = [message["role"] for message in parse_messages(chat, "user", "", "x")]
    assert roles == ["system", "user", "assistant"]
    with pytest.raises(ValueError, match="here: x holds a message without a text"):
        parse_messages([{"role": "user", "content": [{"type": "image"}]}], "user", "here", "x")
    with pytest.raises(ValueError, match="here: prompt ends with the role 'assistant'"):
        parse_prompt({"prompt": chat}, "here")
    asked = parse_prompt({"prompt": "q", "system": "s"}, "")
    assert asked == ({"role": "system", "content": "s"}, {"role": "user", "content": "q"})
    with pytest.raises(
        ValueError, match="here: has a column system and messages that begin with a system message"
    ):
        parse_prompt({"prompt": [asked[0], asked[1]], "system": "other"}, "here")
    for wrong in (
        {"from": ["human"], "value": "x"},
        {"role": ["user"], "content": "x"},
        {"role": "user"},
        "x",
        None,
    ):
        with pytest.raises(ValueError, match="here: x "):
            parse_messages([wrong], "user", "here", "x")


def test_the_same_words_are_the_same_prompt():
    user = {"role": "user", "content": "What is a café?"}
    system = {"role": "system", "content": "Be brief."}
    written = {"role": "user", "content": "  What is\xa0a\ncafe\u0301? "}
    keys = {
        prompt_key(messages)
        for messages in (
            [user],
            [system, user],
            [written],
            parse_prompt({"prompt": user["content"]}, ""),
        )
    }
    assert len(keys) == 1
    assert prompt_key([user]) != prompt_key([user, {"role": "assistant", "content": "."}, user])
    assert messages_to_text([user]) == user["content"]
    assert messages_to_text([system, user]) == "system: Be brief.\nuser: What is a café?"
    assert all(
        is_held_out(user["content"], f) == is_held_out(written["content"], f)
        for f in (0.1, 0.3, 0.5, 0.7, 0.9)
    )


def test_problems_of_a_file_are_used_whole_and_once(tmp_path):
    rows = [{"prompt": f"{i}?", "answer": str(i)} for i in range(2500)]
    file, reader = (
        lines(tmp_path / "a.jsonl", *rows, {"prompt": " 7? ", "answer": "7"}),
        RowReader(),
    )
    assert len(make_family(file, None, reader)) == 2500
    assert reader.lines() == [
        f"{file}: 1 rows repeat the question of an earlier row; each question counts once"
    ]
    few = make_family(file, 40, reader := RowReader())
    assert few == make_family(file, 400)[:40]
    assert f"{file}: 40 of 2500 problems are used (text.num_problems)" in reader.lines()
    file = lines(tmp_path / "b.jsonl", *rows[:9], {"prompt": "7?", "answer": "8"})
    with pytest.raises(
        ValueError, match=r"line 10: repeats the question of .*line 8 with another answer"
    ):
        make_family(file, None)
    skipping = RowReader("skip")
    assert {p.question: p.answer for p in make_family(file, None, skipping)}["7?"] == "7"
    assert skipping.results()["rows"][file]["left out"] == 1


def test_a_problem_may_be_asked_by_messages(tmp_path):
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    problem = make_family(lines(tmp_path / "a.jsonl", {"prompt": asked, "answer": 2}), None)[0]
    assert list(problem.prompt_messages) == asked
    assert problem.where == f"{tmp_path / 'a.jsonl'}, line 1"
    plain = make_family(lines(tmp_path / "b.jsonl", {"prompt": asked[1:], "answer": 2}), None)[0]
    assert (plain.question, plain.key) == ("1 + 1?", problem.key)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tests": [{"call": "f(1)"}]}, "test 1 .* must have output"),
        ({"tests": [{"call": "f(1)", "output": 1}]}, "test 1 .* output must be a text"),
        ({"tests": "f(1) == 1"}, "tests .* must be a list of at least one"),
        ({"words": [1]}, "words .* must be a text or a list of texts"),
        ({"references": []}, "references .* must be a text or a list of texts"),
        ({"schema": {"type": "objet"}}, "schema is no JSON schema"),
        ({"schema": "object"}, "schema"),
        ({"tools": ["weather"]}, "tools .* must map each tool"),
        (
            {"tools": {"weather": {}}, "call": "weather"},
            "call .* must be an object with name and arguments",
        ),
        (
            {"answer": "1", "verifier": "math_equals"},
            "verifier 'math_equals' is unknown: choose one of exact",
        ),
        (
            {"answer": "1", "verifier": "answer.last_numbers"},
            "verifier 'answer.last_numbers' is unknown",
        ),
        ({"answer": "1", "verifier": "code"}, "verifier 'code' needs the column tests"),
        ({"answer": "", "verifier": "exact"}, "verifier 'exact' needs an answer"),
        ({"answer": float("nan")}, "answer .nan. must be a text or a number"),
        (
            {"choices": ["red", "blue"], "answer": 1},
            "choices do not stand in the prompt: write them there",
        ),
        (
            {"options": {"A": "red", "B": "blue"}, "answer": "B"},
            "options do not stand in the prompt",
        ),
    ],
)
def test_a_row_that_no_verifier_can_use_is_refused_when_it_is_read(tmp_path, row, message):
    with pytest.raises(ValueError, match=f"a.jsonl, line 1: {message}"):
        make_family(lines(tmp_path / "a.jsonl", {"prompt": "p", **row}), None)


def test_a_text_is_one_word_and_one_reference(tmp_path):
    rows = [
        {"prompt": "a", "words": "apple"},
        {"prompt": "b", "references": "der Apfel", "verifier": "chrf"},
    ]
    facts = {p.question: p.facts for p in make_family(lines(tmp_path / "a.jsonl", *rows), None)}
    assert facts == {"a": {"words": ["apple"]}, "b": {"references": ["der Apfel"]}}
