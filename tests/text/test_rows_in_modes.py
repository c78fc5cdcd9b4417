"""Rows of files through whole runs on a tiny model: what is learned, what is held out, what is left
out and told."""

import json
import math

import pytest

import vla.pipelines.text.preference
from vla.config import ConfigError, load
from vla.config.text import Prompts
from vla.data.chat import ChatFormat
from vla.data.rows import RowReader
from vla.data.tokenizer import train_tokenizer
from vla.pipelines.text.run import run_in_folder
from vla.rewards.gold_rewards import GOLD_REWARDS
from vla.sft.examples import example_settings
from vla.text.hash_split import is_held_out
from vla.text.prompts import make_prompt_sets
from vla.text.sources import TokenLimit, encode_conversations, read_source
from vla.training.run_folder import open_run

TINY = [
    "mode=text",
    "language_model=tiny",
    "language_model.vocabulary_size=288",
    "language_model.width=32",
    "language_model.depth=1",
    "train.tensorboard=false",
    "train.num_threads=1",
]
OPEN = [
    "text.generation.max_new_tokens=4",
    "text.prompts.num_evaluation=3",
    "text.gold=letters",
    "text.fit.num_steps=2",
]


@pytest.fixture(autouse=True)
def _a_gold_reward_that_a_random_model_can_differ_in(monkeypatch):
    monkeypatch.setitem(
        GOLD_REWARDS, "letters", lambda prompt, text: sum(map(str.isalpha, text)) / 10
    )


@pytest.fixture
def learned(monkeypatch):
    """The comparisons that every round learns from, and the run that does."""
    seen, train_round = [], vla.pipelines.text.preference.train_round

    def spied(mode, comparisons, *arguments):
        seen.append((mode, list(comparisons)))
        return train_round(mode, comparisons, *arguments)

    monkeypatch.setattr(vla.pipelines.text.preference, "train_round", spied)
    return seen


def go(folder, name, *overrides):
    config = load([*TINY, f"text={name}", f"run_dir={folder}", *overrides])
    return run_in_folder(config, open_run(config))


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(prompt, number=0):
    return {"prompt": prompt, "chosen": f"aaa {number}", "rejected": f"111 {number}"}


def test_chats_with_one_system_message_are_learned_in_epochs(tmp_path, capsys):
    system = {"role": "system", "content": "You are a helpful assistant."}

    def chat(i, said="yes"):
        return {
            "messages": [
                system,
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": said},
            ]
        }

    file = lines(
        tmp_path / "a.jsonl",
        *map(chat, range(40)),
        chat(40, "yes " * 999),
        {"messages": "no"},
        chat(1),
    )
    given = [
        f"text.sources=[{file}]",
        "text.fit.num_steps=null",
        "text.fit.num_epochs=2",
        "text.fit.batch_size=8",
    ]
    with pytest.raises(ValueError, match="a.jsonl, line 42: messages hold no assistant turn"):
        go(tmp_path / "refused", "sft", *given)
    results = go(
        tmp_path / "run", "sft", *given, "text.on_bad_row=skip", "text.fit.learning_rate=1e-2"
    )
    counts = results["rows"][file]
    assert (counts["rows"], counts["left out"]) == (43, 2)
    assert "line 41: takes" in counts["first left out"][1]
    num_held_out = sum(is_held_out(f"q{i}", 0.1) for i in (*range(40), 1))
    assert results["held-out texts"] == {file: num_held_out}
    assert results["epochs"] == pytest.approx(2, abs=0.3)
    records = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(records) == math.ceil(2 * (41 - num_held_out) / 8)
    said = capsys.readouterr().out
    assert (
        f"{file}: 2 of 43 rows left out (text.on_bad_row=skip), the first: {file}, line 42" in said
    )
    assert "1 of 42 rows are repeats, each counts" in said


def test_sampled_comparisons_are_the_same_when_they_are_read_again(tmp_path, learned):
    prompts = f"text.prompts.path={lines(tmp_path / 'p.jsonl', *({'prompt': f'say {i}'} for i in range(40)))}"
    first = go(tmp_path / "first", "preference", prompts, *OPEN)
    file = f"text.comparisons={tmp_path / 'first' / 'comparisons_1.jsonl'}"
    again = go(tmp_path / "again", "preference", prompts, *OPEN, file)
    (_, sampled), (_, read) = learned
    assert [(c.prompt, c.completions[0], c.completions[-1], c.key) for c in sampled] == [
        (c.prompt, c.completions[0], c.completions[-1], c.key) for c in read
    ]
    assert any(c.completions[0][-1] != 2 for c in read)  # a completion that was cut stays cut
    for numbers in (first["round 1"], again["round 1"]):
        numbers.pop("undecided prompts")
    assert first["round 1"] == again["round 1"]
    assert first["gold after"] == again["gold after"]


def test_no_evaluation_prompt_is_learned_whatever_file_it_comes_from(tmp_path, learned):
    pairs = lines(tmp_path / "a.jsonl", *(pair(f"say {i // 2}", i) for i in range(60)))
    given = [f"text.prompts.path={pairs}", f"text.comparisons={pairs}", *OPEN]
    results = go(tmp_path / "run", "preference", *given, "text.prompts.num_evaluation=100")
    ((mode, comparisons),) = learned
    asked = set(mode.prompts.evaluation)
    assert asked == {f"say {i}" for i in range(30) if is_held_out(f"say {i}", 0.2)}
    held_out = [c for c in comparisons if c.key in asked]
    numbers = results["round 1"]
    assert numbers["held-out comparisons"] == len(held_out) == 2 * len(asked)
    assert numbers["comparisons"] == 60 - len(held_out)
    assert numbers["epochs"] == pytest.approx(2 * 8 / numbers["comparisons"], abs=1e-3)
    assert (
        f"{len(held_out)} of 60 comparisons are on held-out prompts, and not learned"
        in results["rows"][pairs]["notes"]
    )


def test_of_one_pair_nothing_is_held_out_and_the_run_says_so(tmp_path, capsys):
    results = go(
        tmp_path / "run",
        "preference",
        f"text.comparisons={lines(tmp_path / 'a.jsonl', pair('Greet.'))}",
        *OPEN,
    )
    assert (results["round 1"]["comparisons"], results["round 1"]["accuracy"]) == (1, None)
    assert "all 1 comparisons share one prompt, so none is held out" in capsys.readouterr().out


def test_comparisons_are_refused_before_anything_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("vla.text.open_ended_run.load_language_parts", None)
    thumbs = f"text.comparisons={lines(tmp_path / 'a.jsonl', {'prompt': 'p', 'completion': 'x', 'label': 1})}"
    for name, more, message in (
        ("rlhf", [], "a reward model needs comparisons"),
        ("preference", [], "only preference=kto can learn from them"),
        ("preference", ["preference=kto"], "all 1 examples have the same prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            go(tmp_path / f"{name}{len(more)}", name, thumbs, *more)


def test_prompts_may_be_messages_and_long_ones_are_found_before_training(tmp_path):
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "say 1"}
    rows = [{"prompt": f"say {i}"} for i in range(30)]
    rows += [
        {"prompt": [user]},
        {"prompt": [system, user]},
        {"prompt": "say " * 200},
        {"prompt": []},
    ]
    file = lines(tmp_path / "p.jsonl", *rows)
    reader = RowReader("skip")
    settings = Prompts(path=file, num_train=9, holdout_fraction=0.2, num_evaluation=40)
    sets = make_prompt_sets(settings, reader)
    assert list(reader.counts[file].left_out) == [
        f"{file}, line 34: prompt must be a text or a list of messages, not list"
    ]
    assert (
        next(iter(reader.counts[file].notes))
        == "1 rows repeat the prompt of an earlier row; each counts once"
    )
    assert list(reader.counts[file].notes)[1].startswith("9 of ")
    whole = make_prompt_sets(settings.model_copy(update={"num_train": None}), reader)
    both = "system: Be brief.\nuser: say 1"
    assert list(whole.messages_for(both)) == [system, user]
    side = whole.train if "say 1" in whole.train else whole.evaluation
    assert both in side  # the system message does not decide
    chat = ChatFormat(train_tokenizer(["say 1"], 300))
    with pytest.raises(
        ValueError,
        match=r"p.jsonl, line 33: takes \d+ tokens, text.generation.max_prompt_tokens is 90",
    ):
        whole.keep_usable(chat, 90, RowReader())
    fitting = whole.keep_usable(chat, 90, reader)
    assert (
        len(fitting.train) + len(fitting.evaluation) == len(whole.train) + len(whole.evaluation) - 1
    )
    assert sets.train == whole.train[:9]


def test_a_chat_longer_than_the_model_has_positions_for_is_named(tmp_path):
    rows = [{"prompt": f"q{i}", "completion": "a" * 30 * i} for i in range(20)]
    source = read_source(lines(tmp_path / "a.jsonl", *rows), 0.3)
    chat, reader = ChatFormat(train_tokenizer(["q"], 300)), RowReader("skip")
    room = TokenLimit(512, "text.row_tokens").within(200)
    with pytest.raises(ValueError, match="the number of positions of the model is 200"):
        encode_conversations(chat, source.name, source.train, room)
    kept = encode_conversations(chat, source.name, source.train, room, reader)
    assert max(len(text.ids) for text in kept) <= 200
    assert len(kept) + len(reader.counts[source.name].left_out) == len(source.train)
    assert TokenLimit(512, "text.row_tokens").within(None) == TokenLimit(
        512, "text.row_tokens"
    ).within(4096)


def test_steps_or_epochs():
    fit = load([*TINY, "text=sft", "text.fit.num_steps=null", "text.fit.num_epochs=1.5"]).text.fit
    assert example_settings(fit, 100, "text.fit").num_steps == math.ceil(1.5 * 100 / 16)
    limited = ["text.fit.max_seconds=5", "text.fit.ema_decay=0.9", "text.fit.schedule=linear"]
    training = example_settings(load([*TINY, "text=sft", *limited]).text.fit, 100, "text.fit")
    assert (training.max_seconds, training.ema_decay, training.schedule) == (5, 0.9, "linear")
    for given in (["text.fit.num_epochs=1"], ["text.fit.num_steps=null"]):
        with pytest.raises(
            ConfigError, match=r"text.fit.num_steps .* and text.fit.num_epochs .* give one of them"
        ):
            load([*TINY, "text=sft", *given])
    with pytest.raises(
        ConfigError, match=r"text.fit.batch_size \(1\) must be at least 2 under preference=kto"
    ):
        load([*TINY, "text=preference", "preference=kto", "text.fit.batch_size=1"])
