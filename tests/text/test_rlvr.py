import json

import numpy as np
import pytest
import torch

from vla.config import load
from vla.data.chat import ChatFormat, observe_prompts
from vla.data.rows import RowReader
from vla.generation.sampling import Sampling
from vla.pipelines.text.run import run_in_folder
from vla.policies.text import TextPolicy
from vla.rewards.compose import RewardScores
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.loop import LoopSettings, LoopState, train_rl
from vla.rl.rollout import collect_rollout
from vla.rl.update import UpdateSettings
from vla.text.adaptive_batch_size import AdaptiveBatchSize
from vla.text.curriculum import Curriculum
from vla.text.environment import TextEnvironment
from vla.text.problem import Problem
from vla.text.problem_evaluation import evaluate_samples
from vla.text.rlvr_setup import make_rlvr_problem_sets
from vla.text.tiny_language_model import tiny_language_model
from vla.training.run_folder import open_run
from vla.types import Decision, Observation, Rollout

TINY = [
    "mode=text",
    "preset=smoke",
    "train.tensorboard=false",
    "text.max_new_tokens=6",
    "train.num_threads=1",
]


def go(folder, *overrides):
    given = [*TINY, *overrides]
    config = load(
        [*given, f"run_dir={folder}"]
        if not any(o.startswith("resume") for o in given)
        else overrides
    )
    return run_in_folder(config, open_run(config))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    results = go(
        folder,
        "text.families=[add1,mul1]",
        "rl.group_size=3",
        "text.num_samples=3",
        "text.num_beams=2",
    )
    return folder, results


def test_a_run_leaves_numbers_report_samples_and_a_model(finished):
    folder, results = finished
    for name in (
        "config.yaml",
        "run.json",
        "problems.json",
        "metrics.jsonl",
        "samples.jsonl",
        "report.html",
    ):
        assert (folder / name).stat().st_size > 0, name
    written = json.loads((folder / "results.json").read_text())
    assert written["before"]["n"] == written["after"]["n"] == 16
    assert {"rl/rollout", "rl/update"} <= set(written["seconds"])
    assert len(written["before"]["interval_95"]) == 2
    assert written["before"]["decoding"] == "greedy"
    assert set(results) >= {
        "family add1",
        "family mul1",
        "comparison",
        "seconds",
        "peak_memory_bytes",
    }
    assert "95 % Wilson interval" in (folder / "report.html").read_text()
    assert written["after, sampled"]["sampled"]["n"] == 3 * 16
    assert written["after, sampled"]["any of 3"]["n"] == 16


class SaysInTurn:
    """A policy that answers every prompt with the next of some texts."""

    def __init__(self, chat, texts):
        self.texts = [[*chat.encode(text), 2] for text in texts]

    def act(self, observation, *, greedy=False):
        rows = [(self.texts.pop(0) + [0] * 9)[:9] for _ in observation.tokens]
        tokens = torch.tensor(rows)
        mask = tokens != 0
        return Decision(
            tokens, {"tokens": tokens, "mask": mask}, torch.zeros(tokens.shape), mask, None
        )

    def score(self, observation, trace):
        raise AssertionError("judging scores nothing")

    def parameters(self):
        return iter(())


def test_several_answers_are_judged_together():
    """Where 5 is right: 5, 4, 5, so the majority is right; where 7 is right: 7, 6, 6, so only one
    of them is."""
    tokenizer = tiny_language_model(
        ["say something"], vocab_size=262, hidden_size=32, num_layers=1
    )[1]
    chat = ChatFormat(tokenizer)
    problems = [Problem("2 + 3?", "5", "exact", "toy"), Problem("3 + 4?", "7", "exact", "toy")]

    def correct(samples):
        right = np.array([s.completion.endswith(s.answer) for s in samples], np.float32)
        return RewardScores(right, {"correct": right})

    environment = TextEnvironment(problems, chat, correct, [2], 6)
    policy = SaysInTurn(chat, ["is 5", "is 4", "5", "so 7", "6", "is 6"])

    def observe(prompts):
        return observe_prompts(prompts, 80, 0, torch.device("cpu"))

    results = evaluate_samples(policy, environment, observe, [0, 1], 3, 1.0)
    assert {name: (each.num_successes, each.n) for name, each in results.items()} == {
        "sampled": (3, 6),
        "any of 3": (2, 2),
        "majority of 3": (1, 2),
    }


def test_training_never_sees_what_it_is_judged_on(finished):
    folder, _ = finished
    manifest = json.loads((folder / "problems.json").read_text())
    trained_on = {
        json.loads(line)["question"] for line in (folder / "samples.jsonl").read_text().splitlines()
    }
    assert trained_on.isdisjoint(manifest["evaluation"])
    sets = make_rlvr_problem_sets(load([*TINY, "text.families=[add1,mul1]"]).text, RowReader())
    train_questions = {problem.question for problem in sets.train}
    assert trained_on <= train_questions
    assert train_questions.isdisjoint(p.question for p in (*sets.validation, *sets.evaluation))
    assert {p.question for p in sets.validation}.isdisjoint(p.question for p in sets.evaluation)


def test_the_trained_model_is_an_ordinary_folder(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = finished
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 1 + 1?"}], return_tensors="pt"
    )
    assert model(**prompt).logits.shape[-1] == 384


def test_ratios_start_at_one_and_the_gap_is_logged(finished):
    folder, _ = finished
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert all("validation_success" in record or "return_mean" in record for record in records)
    assert all(record.get("logprob_gap_max", 0.0) < 1e-4 for record in records)


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    # no answer of a random model is right, but an entropy bonus moves the weights all the same
    common = [
        "algorithm=ppo",
        "algorithm.entropy_coefficient=0.1",
        "rl.learning_rate=1e-2",
        "train.checkpoint_every=2",
    ]
    common += [
        "rl.schedule=constant"
    ]  # one that falls to 0 falls over the iterations asked for, and 2 are not 4
    go(tmp_path / "whole", "rl.num_iterations=4", *common)
    go(tmp_path / "half", "rl.num_iterations=2", *common)
    half = weights(tmp_path / "half")
    go(tmp_path / "half", f"resume={tmp_path / 'half'}", "rl.num_iterations=4")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "half")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(half[name], resumed[name]) for name in whole)
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "half" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4]


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft 0.21
def test_adapters_train_against_the_model_without_them(tmp_path):
    results = go(
        tmp_path / "run",
        "language_model.lora={rank: 2, alpha: 4}",
        "algorithm.kl_coefficient=0.1",
        "rl.num_iterations=1",
        "text.rewards.finished=1.0",
        "text.max_new_tokens=3",
    )
    assert results["after"].n == 16
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").exists()


def test_tags_are_taught_first_and_what_that_does_is_told_apart(tmp_path):
    tags = [
        "text.format_sft_steps=40",
        "+text.rewards.think_format=0.5",
        "text.families=[add1]",
        "rl.num_iterations=1",
    ]
    with pytest.raises(
        ValueError, match=r"text.max_new_tokens .6. is too short for text.format_sft_steps"
    ):
        go(tmp_path / "short", *tags)
    results = go(
        tmp_path / "run", *tags, "text.max_new_tokens=64", "text.format_sft_learning_rate=3e-3"
    )
    assert results["after the format examples"].n == results["before"].n
    assert results["reward think_format"]["before"] == 0.0
    assert set(results["reward correct"]) == {"before", "after"}


def test_calls_of_a_tool_are_taught_first_and_what_it_answers_has_room(tmp_path):
    """A model that says all it may before it calls: question, words, and the tool's answer are more
    than a question may take alone.
    """
    problems = make_rlvr_problem_sets(load([*TINY, "text.families=[add1]"]).text, RowReader()).train
    tokenizer = tiny_language_model([problem.question for problem in problems])[1]
    system = "You can calculate by writing <calc>expression</calc>, for example <calc>7 * 8</calc>."
    asked = [
        ChatFormat(tokenizer, system).prompt([{"role": "user", "content": p.question}])
        for p in problems
    ]
    tool = [
        "text.tool=calculator",
        "text.max_turns=3",
        f"text.max_prompt_tokens={max(map(len, asked)) + 20}",
    ]
    results = go(
        tmp_path / "run",
        *tool,
        "text.families=[add1]",
        "text.max_new_tokens=60",
        "text.format_sft_steps=30",
        "text.format_sft_learning_rate=3e-3",
        "rl.num_iterations=1",
    )
    assert results["after the format examples"].n == results["before"].n


class ShareOfA:
    """Reward: the share of the letters of a completion that are an a."""

    def __call__(self, samples):
        shares = [s.completion.count("a") / max(len(s.completion), 1) for s in samples]
        return RewardScores(np.array(shares, np.float32), {})


@pytest.mark.parametrize(("name", "epochs"), [("grpo", 1), ("ppo", 2)])
def test_a_random_model_learns_to_say_a(name, epochs):
    settings = {
        "grpo": {"clip_low": 0.2, "clip_high": 0.28, "reduction": "token"},
        "ppo": {
            "clip_low": 0.2,
            "clip_high": 0.2,
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "value_coefficient": 0.5,
        },
    }[name]
    model, tokenizer = tiny_language_model(
        ["say something"], vocab_size=262, hidden_size=32, num_layers=1
    )
    problems = [Problem(f"say something {i}", "", "exact", "toy") for i in range(4)]
    policy = TextPolicy(model, Sampling(), 4, [2], 0, value_head=name == "ppo")
    environment = TextEnvironment(problems, ChatFormat(tokenizer), ShareOfA(), [2], 64)

    def observe(prompts):
        return observe_prompts(prompts, 60, 0, torch.device("cpu"))

    torch.manual_seed(0)
    returns = []
    train_rl(
        policy,
        make_algorithm(name, **settings),
        lambda iteration: collect_rollout(
            policy, environment, [0, 1, 2, 3], 16, observe, version=iteration
        ),
        torch.optim.Adam(policy.parameters(), lr=1e-2),
        UpdateSettings(epochs=epochs, num_minibatches=1, micro_batch_rows=64),
        LoopSettings(num_iterations=60),
        LoopState(),
        on_iteration=lambda iteration, rollout, metrics: returns.append(metrics["return_mean"]),
    )
    assert returns[0] < 0.1
    assert np.mean(returns[-5:]) > 0.9


def test_a_curriculum_opens_families_as_they_are_mastered():
    curriculum = Curriculum(
        [range(10), range(10, 20), range(20, 30)], curriculum_threshold=0.8, seed=3
    )
    assert max(curriculum.draw(0, 0, 8)) < 10
    for success in (0.9, 0.7, 0.7, 0.9):  # means of three: .77, .77
        curriculum.update(success)
        assert curriculum.num_open == 1
    curriculum.update(0.9)  # (.7 + .9 + .9) / 3 = .83
    assert curriculum.num_open == 2
    drawn = curriculum.draw(5, 0, 8)
    assert sum(10 <= number < 20 for number in drawn) == 4
    assert sum(number < 10 for number in drawn) == 4
    assert drawn == curriculum.draw(5, 0, 8)
    assert drawn != curriculum.draw(5, 1, 8)
    kept = Curriculum([range(10), range(10, 20), range(20, 30)], curriculum_threshold=0.8, seed=3)
    kept.load_state_dict(curriculum.state_dict())
    assert kept.draw(6, 0, 8) == curriculum.draw(6, 0, 8)
    assert Curriculum([range(10), range(10, 20)], curriculum_threshold=None, seed=0).num_open == 2


def test_a_family_that_is_unknown_is_named_before_a_model_loads(tmp_path):
    with pytest.raises(ValueError, match="family 'add9' is unknown"):
        go(tmp_path, "text.families=[add9]")


def two_groups(said, rewards):
    """Four answers each to the prompts [1, 2] and [1, 3]."""
    tokens, asked = torch.tensor(said), torch.tensor([[1, 2]] * 4 + [[1, 3]] * 4)
    drawn, ended = torch.ones_like(tokens, dtype=torch.bool), torch.ones(8, dtype=torch.bool)
    group, rows = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), torch.arange(8)
    observation = Observation({}, None, asked, torch.ones_like(asked, dtype=torch.bool))
    trace, logprobs, reward = {"tokens": tokens}, torch.zeros(8, 2), torch.tensor(rewards)
    return Rollout(
        observation,
        trace,
        logprobs,
        drawn,
        reward,
        rows,
        ended,
        ~ended,
        group,
        torch.zeros_like(rows),
    )


def test_more_problems_are_asked_the_less_they_cost():
    """All answers differ and both groups teach: 3 tokens of prompts and 16 of answers, counted
    three times, 28.5 a problem. Then one answer of eight differs: 3 + 2 + 4 tokens, of which the
    second group's 2 + 4 are learned from: 9 + 2 x 6 = 21, 10.5 a problem. Means (28.5 + 10.5) / 2 =
    19.5 and (19.5 + 10.5) / 2 = 15: 8 starts become 8 x 28.5 / 19.5 = 11.7, and 8 x 28.5 / 15 =
    15.2, limited to 1.5 x 8 = 12.
    """
    first = two_groups([[5, 9], [6, 9], [7, 9], [8, 9]] * 2, [0.0, 1.0, 0.0, 0.0] * 2)
    later = two_groups([[5, 9]] * 7 + [[6, 9]], [0.0] * 7 + [1.0])
    oversampling = AdaptiveBatchSize(8, 1.5)
    assert oversampling.count == 8
    oversampling.update(first)
    assert oversampling.count == 8
    oversampling.update(later)
    assert oversampling.count == 11
    oversampling.update(later)
    assert oversampling.count == 12
    resumed = AdaptiveBatchSize(8, 100.0)
    resumed.load_state_dict(oversampling.state_dict())
    assert resumed.count == 15
