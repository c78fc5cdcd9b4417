"""Comparisons and thumbs of files: what may be learned from them, on which side of a split they
fall, as which ids."""

import json

import pytest

from vla.data.chat import ChatFormat
from vla.data.messages import prompt_key, user_message
from vla.data.preferences import Ranking
from vla.data.rows import RowReader
from vla.data.tokenizer import train_tokenizer
from vla.preference.objective import DPO, IPO, KTO
from vla.text.comparison_rows import encode_comparisons, read_comparisons, split_by_prompt
from vla.text.comparisons import compare_by_judge
from vla.text.hash_split import is_held_out, split_position
from vla.text.preference_training import BinaryExample, Comparison
from vla.text.prompts import Completion

DPO_1, FRACTION = DPO(0.1, 0.0), 0.2


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(train_tokenizer(["hello see you"], 300))


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(prompt, **more):
    return {"prompt": prompt, "chosen": "good", "rejected": "bad", **more}


def read(file, objective=DPO_1, keep=None, reader=None):
    return read_comparisons(file, objective, FRACTION, keep, reader or RowReader())


def test_no_prompt_is_on_both_sides_and_held_out_prompts_are_never_learned():
    made = [Comparison([i], ([1], [2]), key=f"Topic {i // 4}?") for i in range(400)]
    train, held_out = split_by_prompt(made, FRACTION)
    assert len(train) + len(held_out) == 400
    assert {c.key for c in train}.isdisjoint(c.key for c in held_out)
    assert all(is_held_out(c.key, FRACTION) for c in held_out)
    assert not any(is_held_out(c.key, FRACTION) for c in train)
    # the same whatever else is in the file, and in whatever order
    assert split_by_prompt(made[::-2], FRACTION)[1] == [c for c in made[::-2] if c in held_out]


def test_comparisons_on_training_prompts_hold_a_share_of_them_out_besides():
    made = [Comparison([i], ([1], [2]), key=f"Topic {i}?") for i in range(400)]
    only = [c for c in made if not is_held_out(c.key, FRACTION)]
    train, held_out = split_by_prompt(only, FRACTION)
    assert (
        max(split_position(c.key) for c in held_out)
        < 0.28
        <= min(split_position(c.key) for c in train)
    )
    assert 15 < len(held_out) < 50
    few = sorted(only, key=lambda c: split_position(c.key))[-3:]
    assert split_by_prompt(few, FRACTION) == (few[1:], few[:1])
    assert split_by_prompt(few[:1] * 3, FRACTION) == (few[:1] * 3, [])
    with pytest.raises(
        ValueError, match=r"all 2 comparisons are on prompts that text.prompts.holdout_fraction"
    ):
        split_by_prompt([c for c in made if is_held_out(c.key, FRACTION)][:2], FRACTION)


def test_what_was_drawn_is_read_again_as_it_was(chat, tmp_path):
    """Token ids that no text gives back, a completion that was cut, and a prompt of several
    messages."""
    ids = {
        "hello": [*chat.encode("hel"), *chat.encode("lo"), chat.turn_end],
        "see": chat.encode("see"),
    }
    prompt = chat.prompt(user_message("hi"))
    drawn = [
        Completion("hi", prompt, text, ids[text], ids[text][-1] == chat.turn_end) for text in ids
    ]
    labels = compare_by_judge(LongestIsBest(), [drawn], whole=True)
    assert ids["hello"][:-1] != chat.encode("hello")
    file = lines(tmp_path / "a.jsonl", *labels.rows)
    again = encode_comparisons(chat, file, read(file), None, RowReader())
    assert again == [
        Comparison(prompt, (ids["hello"], ids["see"]), labels.comparisons[0].margin, key="hi")
    ]
    row = labels.rows[0]
    file = lines(tmp_path / "b.jsonl", {**row, "completion_ids": [[7], [8]]})
    with pytest.raises(
        ValueError,
        match=r"b.jsonl, line 1: completion_ids do not spell completions with this model",
    ):
        encode_comparisons(chat, file, read(file), None, RowReader())
    del row["completion_ids"]  # the texts, and whether they had ended
    file = lines(tmp_path / "c.jsonl", row)
    ended, cut = encode_comparisons(chat, file, read(file), None, RowReader())[0].completions
    assert (ended, cut) == ([*chat.encode("hello"), chat.turn_end], chat.encode("see"))
    file = lines(tmp_path / "d.jsonl", {**row, "finished": [True]})
    with pytest.raises(ValueError, match="line 1: 2 completions with 1 finished"):
        read(file)


class LongestIsBest:
    def prefer(self, prompt, first, second):
        return float(len(first) > len(second))


def test_margins_are_used_or_refused_by_name(tmp_path, chat):
    plain, own = pair("a"), pair("b", margin="1.5")
    scored = pair("c", score_chosen=5, score_rejected=4)
    file = lines(tmp_path / "a.jsonl", own, scored)
    made = encode_comparisons(chat, file, read(file), None, RowReader())
    assert [(c.margin, c.target_margin) for c in made] == [(1.5, 1.5), (1.0, None)]
    assert len(read(file, objective=None)) == 2  # a reward model asks for margins
    with pytest.raises(
        ValueError, match=r"line 1: the column margin is used by preference=dpo .* not by IPO"
    ):
        read(file, IPO(0.1, True))
    assert [row.margin for row in read(file, IPO(0.1, True), keep=0.5)] == [1.5]
    reader = RowReader()
    assert len(read(file, keep=0.5, reader=reader)) == 1
    assert reader.lines()[0] == f"{file}: 1 of 2 comparisons are kept (text.keep_fraction)"
    with pytest.raises(
        ValueError, match=r"line 2: has neither margin nor scores, and text.keep_fraction \(0.5\)"
    ):
        read(lines(tmp_path / "b.jsonl", own, plain), keep=0.5)
    for row, message in (
        (pair("a", margin=-1), "rejected is better than chosen by 1"),
        (pair("a", score_chosen=1, score_rejected=2), "rejected is better than chosen by 1"),
        (pair("a", margin="much"), "margin holds 'much', which is no finite number"),
        (pair("a", margin=True), "margin holds True"),
        (
            {"prompt": "a", "completions": ["b", "c"], "margin": 1},
            "margin goes with chosen and rejected",
        ),
    ):
        with pytest.raises(ValueError, match=f"line 1: {message}"):
            read(lines(tmp_path / "c.jsonl", row))


def test_kto_without_another_prompt_or_another_label_is_refused_before_anything_loads(tmp_path):
    one = {"prompt": "a", "completion": "x", "label": True}
    likes = [{**one, "prompt": f"Greet {i}."} for i in range(40)]
    same = "have the same prompt, and the baseline of kto puts a completion behind another prompt"
    for rows, objective, message in (
        ([one], KTO(0.1, False), same),
        ([one, {**one, "label": "down"}], KTO(0.1, True), same),
        ([pair("a"), pair("a", chosen="nice")], KTO(0.1, True), same),
        (likes, KTO(0.1, True), r"liked and 0 disliked .* or preference.balance=false"),
        (likes, DPO_1, "holds thumbs: only preference=kto can learn from them"),
        (likes, None, "holds thumbs: a reward model needs comparisons"),
    ):
        with pytest.raises(ValueError, match=message):
            read(lines(tmp_path / "a.jsonl", *rows), objective)
    reader = RowReader()
    learned = read(lines(tmp_path / "a.jsonl", *likes), KTO(0.1, False), reader=reader)
    assert not any(is_held_out(thumb.key, FRACTION) for thumb in learned)
    assert "thumbs are on held-out prompts: left out" in reader.lines()[0]


def test_rows_that_are_too_long_or_become_equal_are_named_or_counted(tmp_path, chat):
    rows = [pair("a"), pair("b", chosen="good " * 400), pair("c", chosen="good ", rejected="good")]
    file = lines(tmp_path / "a.jsonl", *rows)
    stripping = ChatFormat(train_tokenizer(["hello"], 300))
    stripping.tokenizer.chat_template = chat.tokenizer.chat_template.replace(
        "['content']", "['content'].strip()"
    )
    with pytest.raises(
        ValueError, match=r"line 2: takes \d+ tokens, the model has 300 positions: shorten it"
    ):
        encode_comparisons(chat, file, read(file), 300, RowReader())
    reader = RowReader("skip")
    made = encode_comparisons(stripping, file, read(file, reader=reader), 300, reader)
    assert [c.key for c in made] == ["a"]
    assert [fault.split(": ")[1] for fault in list(reader.counts[file].left_out)[1:]] == [
        "best and worst become the same tokens, so nothing can be learned"
    ]
    thumb = {"prompt": "a", "completion": "x", "label": "1"}
    file = lines(tmp_path / "b.jsonl", thumb, {**thumb, "prompt": "Greet 0.", "label": "0"})
    made = encode_comparisons(chat, file, read(file, KTO(0.1, True)), None, RowReader())
    assert [(type(example), example.liked) for example in made] == [
        (BinaryExample, True),
        (BinaryExample, False),
    ]


def test_equal_ties_and_broken_rows_can_be_skipped_and_repeats_are_told(tmp_path):
    tied = {"prompt": "t", "completions": ["a", "b", "c"], "scores": [2, 2, 1]}
    file = lines(
        tmp_path / "a.jsonl", pair("a"), tied, pair("a"), pair("b", rejected="good"), pair("c")
    )
    with pytest.raises(ValueError, match=r"line 2: scores hold equal values.*text.on_bad_row=skip"):
        read(file)
    reader = RowReader("skip")
    assert len(read(file, reader=reader)) == 3
    assert reader.results()["rows"][file]["left out"] == 2
    assert f"{file}: 1 of 3 rows are repeats, each counts" in reader.lines()


def test_a_system_message_does_not_decide_the_side():
    asked = tuple(user_message("What is a cup for?"))
    told = ({"role": "system", "content": "Be kind."}, *asked)
    keys = {Ranking(prompt, ("a", "b"), None, "").key for prompt in (asked, told)}
    assert keys == {prompt_key(asked)} == {"What is a cup for?"}
