"""Texts beside demonstrations: read, packed, learned and judged as a language model alone would."""

from __future__ import annotations

import json
import math

import pytest
import torch

import vla.runtime
from tests.models.tiny import tiny_vlm
from tests.test_pipeline import TINY
from vla.commands.train import main
from vla.config import ConfigError, load
from vla.data.rows import RowReader
from vla.data.tokenizer import train_tokenizer
from vla.pipelines.robot.cotraining_text import MAX_HELD_OUT_TEXTS, TextCoTraining
from vla.text.sources import read_source
from vla.training.distributed import Processes

WORDS = [
    "red",
    "green",
    "blue",
    "cube",
    "ball",
    "block",
    "left",
    "right",
    "near",
    "far",
    "up",
    "down",
]
LINES = [f"the {a} {b} is {c}" for a in WORDS for b in WORDS for c in ("here", "there")]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def told(tmp_path):
    """Plain texts and conversations, two sources."""
    talks = [
        {"prompt": f"where is the {a} {b}?", "completion": "there"} for a in WORDS for b in WORDS
    ]
    return [
        write(tmp_path / "plain.jsonl", [{"text": line} for line in LINES]),
        write(tmp_path / "talks.jsonl", talks),
    ]


def texts_of(names, **given):
    values = {"batch_size": 8, "row_tokens": 128, "num_steps": 5, "seed": 0, **given}
    tokenizer = values.pop("tokenizer", None) or train_tokenizer(LINES, 400)
    sources = [read_source(n, 0.2, reader=values.get("reader")) for n in names]
    return TextCoTraining(tiny_vlm(vocabulary_size=448), tokenizer, sources, **values)


def test_a_text_is_read_without_picture_or_state_and_blind_to_its_neighbours(told):
    """The packed loss is that of every text alone, through the language model as transformers runs
    it."""
    texts = texts_of(told)
    batch = texts.batch(3)
    terms = []
    for text in batch:
        ids = torch.tensor([text.ids])
        logits = texts.model.backbone.model(input_ids=ids).logits[0, :-1].float()
        lost = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        terms.append(lost[torch.tensor(text.learned[1:])])
    torch.testing.assert_close(texts.loss(batch)[0], torch.cat(terms).mean(), rtol=1e-4, atol=1e-4)


def test_every_step_has_its_own_texts_of_all_sources(told):
    texts = texts_of(told, num_steps=30)
    assert texts.batch(2) == texts_of(told, num_steps=30).batch(2)
    assert texts.batch(2) != texts.batch(3)
    assert len(texts.batch(29)) == 8
    learned_whole = [all(text.learned) for step in range(30) for text in texts.batch(step)]
    assert (
        0.35 < sum(learned_whole) / len(learned_whole) < 0.65
    )  # plain texts are; of conversations, the answers


def test_processes_share_the_texts_of_a_step(told):
    class Second(Processes):
        num_processes, rank = 2, 1

        def __init__(self):
            pass

    assert texts_of(told, processes=Second()).batch(1) == texts_of(told).batch(1)[1::2]


def test_held_out_texts_are_judged_and_never_learned(told):
    texts = texts_of(told, num_steps=400)
    held_out = {tuple(text.ids) for kept in texts.held_out.values() for text in kept}
    learned = {tuple(text.ids) for step in range(400) for text in texts.batch(step)}
    assert held_out
    assert not held_out & learned
    assert all(len(kept) <= MAX_HELD_OUT_TEXTS for kept in texts.held_out.values())
    found = texts.perplexity()
    assert list(found) == told
    assert all(math.isfinite(value) and value > 1 for value in found.values())


def test_a_tokenizer_without_a_template_takes_plain_texts_only(told):
    tokenizer = train_tokenizer(LINES, 400)
    tokenizer.chat_template = None
    texts_of(told[:1], tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"talks\.jsonl holds conversations.* no chat template"):
        texts_of(told, tokenizer=tokenizer)


def test_a_text_that_is_too_long_is_named_with_the_setting(told):
    with pytest.raises(
        ValueError,
        match=r"plain\.jsonl, line 1: takes \d+ tokens, data\.text_tokens is 5: raise it",
    ):
        texts_of(told, row_tokens=5)


def test_texts_that_cannot_be_used_are_counted_where_that_is_asked_for(told):
    reader = RowReader("skip", "data.on_bad_row")
    with open(told[0], "a") as file:
        file.write(json.dumps({"text": "long " * 400}) + "\nbroken\n")
    texts = texts_of(told[:1], reader=reader)
    found = texts.reader.results()["rows"][told[0]]
    assert [fault.split(": ")[1].split()[0] for fault in found["first left out"]] == ["no", "takes"]
    with pytest.raises(ValueError, match=r"no JSON .*\(data.on_bad_row=skip leaves such rows out"):
        texts_of(told[:1], reader=RowReader("error", "data.on_bad_row"))


def test_texts_need_a_model_that_learns():
    with pytest.raises(
        ConfigError, match=r"data.texts=\[add2\] train the language model, which sft.head_only"
    ):
        load(["data.texts=[add2]"])
    assert load(["data.texts=[add2]", "sft.head_only=false"]).data.texts == ("add2",)
    assert load(["data.texts=[add2]", "policy.decoding=autoregressive"]).data.texts == (
        "add2",
    )  # all of it learns


def test_a_run_learns_texts_while_it_learns_to_act_and_reports_both(told, tmp_path, monkeypatch):
    """Beside the same run without them: the held-out texts are foreseen better, and what is
    reported says so."""
    monkeypatch.setattr(vla.runtime, "prepare", lambda *arguments, **settings: None)
    few = [
        "evaluation.num_videos=0",
        "rl.num_iterations=1",
        "evaluation.num_starts=2",
        "evaluation.num_validation_starts=1",
    ]
    found = {}
    for weight in (0.0, 1.0):
        folder = tmp_path / f"run{weight}"
        settings = [
            f"data.texts=[{told[0]},{told[1]}]",
            f"data.text_weight={weight}",
            "data.text_batch_size=8",
        ]
        assert main([*TINY, *few, *settings, f"run_dir={folder}"]) == 0
        found[weight] = json.loads((folder / "results.json").read_text())["stages"]
    before, after = (found[1.0][f"texts_{name}"]["perplexity"] for name in ("before", "after"))
    assert before == found[0.0]["texts_before"]["perplexity"]
    for name in told:
        assert after[name] < before[name]
        assert after[name] < 0.9 * found[0.0]["texts_after"]["perplexity"][name]
    page = (tmp_path / "run1.0" / "report.html").read_text()
    assert "Perplexity of held-out texts" in page
    assert f"{after[told[0]]:.2f}" in page
