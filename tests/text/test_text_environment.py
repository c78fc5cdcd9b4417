import math
from functools import partial

import numpy as np
import pytest
import torch

from vla.data.chat import ChatFormat, observe_prompts, pad_prompts, stop_ids
from vla.generation.sampling import Sampling
from vla.policies.text import TextPolicy
from vla.rewards.compose import Rewards
from vla.rewards.verifier_process import VerifierProcess
from vla.rl.protocols import StepResult, VectorEnvironment
from vla.rl.rollout import collect_rollout
from vla.text.environment import TextEnvironment, calculator_tool
from vla.text.format_warmup import check_lengths, tool_call_examples
from vla.text.problem import Problem
from vla.text.tiny_language_model import tiny_language_model

PROBLEMS = [
    Problem("What is 2 + 3?", "5", "last_number", "toy"),
    Problem("What is 4 + 4?", "8", "last_number", "toy"),
    Problem("What is it?", "unknown", "last_number", "toy"),
]


@pytest.fixture(scope="module")
def parts():
    model, tokenizer = tiny_language_model([p.question for p in PROBLEMS], weight_scale=0.3)
    with VerifierProcess() as process:
        yield model, tokenizer, Rewards({"correct": 1.0, "finished": 0.1}, process)


def actions(tokenizer, *texts, length=40):
    """Completions as a policy gives them: ids, the stop token, padding; "|" fills up with spaces
    and never stops."""
    rows = np.full((len(texts), length), tokenizer.pad_token_id, np.float32)
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer(text.rstrip("|")).input_ids
        ids += (
            tokenizer(" ").input_ids * (length - len(ids))
            if text.endswith("|")
            else [tokenizer.eos_token_id]
        )
        row[: len(ids)] = ids
    return rows


def make(parts, **settings):
    model, tokenizer, rewards = parts
    return TextEnvironment(
        PROBLEMS, ChatFormat(tokenizer), rewards, stop_ids(tokenizer, model), 3, **settings
    )


def test_it_is_an_environment(parts):
    environment = make(parts)
    assert isinstance(environment, VectorEnvironment)
    environment.reset([0, 1, 2])
    assert isinstance(environment.step(actions(parts[1], "a", "b", "c")), StepResult)


def test_one_decision_is_an_episode(parts):
    environment = make(parts)
    tokenizer = parts[1]
    prompts = environment.reset([1, 0, 2])
    assert (
        tokenizer.decode(prompts[0])
        == "<|im_start|>user\nWhat is 4 + 4?<|im_end|>\n<|im_start|>assistant\n"
    )
    result = environment.step(actions(tokenizer, "it is 8", "5 or 6", "7"))
    np.testing.assert_allclose(result.reward, [1.1, 0.1, math.nan])
    assert result.success.tolist() == [True, False, False]
    assert result.terminated.all()
    assert not result.truncated.any()
    episodes = environment.take_episodes()
    assert [episode.transcript for episode in episodes] == ["it is 8", "5 or 6", "7"]
    assert environment.take_episodes() == []


def test_a_completion_that_never_stops_is_not_finished(parts):
    environment = make(parts)
    environment.reset([0], np.array([2]))
    cut = actions(parts[1], "it is 5|", length=12)
    assert not np.isin(cut, [2]).any()
    result = environment.step(cut, np.array([2]))
    assert environment.episodes[0].sample.finished is False
    assert result.reward.tolist() == [1.0]  # without the .1 of `finished`


def test_a_tool_answers_between_two_decisions_and_its_words_are_not_the_policys(parts):
    tokenizer = parts[1]
    environment = make(parts, tool=calculator_tool, max_turns=2)
    first = environment.reset([0, 1, 0])
    called = actions(tokenizer, "<calc>2 + 3</calc>", "8", "<calc>2 + 3</calc>|")
    result = environment.step(called)
    assert result.terminated.tolist() == [False, True, False]
    assert result.reward[[0, 2]].tolist() == [0, 0]
    # the ids of the completion stand in the next prompt exactly as they were drawn, the tool's
    # answer behind them
    said = [int(i) for i in called[0] if i != tokenizer.pad_token_id]
    following = result.observation[0]
    assert following[: len(first[0]) + len(said)] == first[0] + said
    rest = tokenizer.decode(following[len(first[0]) + len(said) :])
    assert rest == "\n<|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\n"
    # a completion that was cut gets its turn closed
    num_spaces = 40 - len(tokenizer("<calc>2 + 3</calc>").input_ids)
    assert tokenizer.decode(result.observation[2]).endswith(
        "</calc>"
        + " " * num_spaces
        + "<|im_end|>\n<|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\n"
    )
    # the last turn cannot call the tool again
    result = environment.step(actions(tokenizer, "so 5", "<calc>1+1</calc>"), np.array([0, 2]))
    assert result.terminated.all()
    assert result.success.tolist() == [True, False]
    assert environment.episodes[1].transcript == "<calc>2 + 3</calc>\n5\nso 5"


def test_rollouts_of_several_turns(parts):
    """The rows of a trajectory are its decisions; a tool's words stand in observations, never under
    the mask."""
    tokenizer = parts[1]
    calls_first = Scripted(
        tokenizer, [["<calc>2 + 3</calc>", "5"], ["no"], ["<calc>4+4</calc>", "9"]]
    )
    environment = make(parts, tool=calculator_tool, max_turns=2)
    observe = partial(
        observe_prompts, width=120, pad_id=tokenizer.pad_token_id, device=torch.device("cpu")
    )
    rollout = collect_rollout(calls_first, environment, [0, 0, 1], 1, observe)
    assert rollout.trajectory.bincount().tolist() == [2, 1, 2]
    assert rollout.success.tolist() == [1, 0, 0]
    torch.testing.assert_close(rollout.returns, torch.tensor([1.1, 0.1, 0.1]))
    last = rollout.trajectory.tolist().index(0, 1)
    prompt = tokenizer.decode(
        rollout.observation.tokens[last][rollout.observation.token_mask[last]]
    )
    assert "<|im_start|>tool\n5<|im_end|>" in prompt
    assert tokenizer.decode(rollout.trace["tokens"][last][rollout.mask[last]]) == "5<|im_end|>"


def test_examples_of_calls_are_the_ids_of_an_episode(parts):
    """What the warm-up shows is read and said by the environment to the last id, and earns the
    reward."""
    tokenizer = parts[1]
    problem = Problem("What is 2 + 3?", "5", "last_number", "toy", {"expression": "2 + 3"})
    call, answer = tool_call_examples([problem, PROBLEMS[1]], ChatFormat(tokenizer))
    environment = make(parts, tool=calculator_tool, max_turns=2)
    assert environment.reset([0], np.array([0])) == [call.prompt]
    between = environment.step(np.array([call.completion], np.float32), np.array([0]))
    assert between.terminated.tolist() == [False]
    assert between.observation == [answer.prompt]
    ended = environment.step(np.array([answer.completion], np.float32), np.array([0]))
    assert ended.terminated.tolist() == [True]
    assert ended.success.tolist() == [True]
    check_lengths([call, answer], len(call.completion), len(answer.prompt))
    with pytest.raises(
        ValueError, match=r"text.max_new_tokens \(2\) is too short .* up to \d+ tokens"
    ):
        check_lengths([call, answer], 2, 999)
    with pytest.raises(
        ValueError, match=r"text.max_prompt_tokens \(9\) is too short .* up to \d+ tokens"
    ):
        check_lengths([call, answer], 99, 9)
    with pytest.raises(
        ValueError, match=r"no family of text.families has any: add one of arithmetic"
    ):
        tool_call_examples(PROBLEMS, ChatFormat(tokenizer))


class Scripted:
    """A policy that says what it is told, by environment and turn."""

    def __init__(self, tokenizer, scripts):
        self.tokenizer, self.scripts, self.turn = tokenizer, [list(script) for script in scripts], 0

    def act(self, observation, *, greedy=False):
        from vla.types import Decision

        texts = [script.pop(0) for script in self.scripts if script]
        tokens = torch.from_numpy(actions(self.tokenizer, *texts)).long()
        mask = tokens != self.tokenizer.pad_token_id
        return Decision(tokens, {"tokens": tokens, "mask": mask}, torch.zeros(mask.shape), mask)

    def score(self, observation, trace): ...

    def parameters(self):
        return iter(())


def test_the_policys_decisions_are_scored_as_they_were_drawn_in_later_turns_too(parts):
    model, tokenizer, _ = parts
    always = TextEnvironment(
        PROBLEMS[:2],
        ChatFormat(tokenizer),
        Rewards({"correct": 1.0}),
        [2],
        4,
        lambda text: "well",
        max_turns=3,
    )
    policy = TextPolicy(model, Sampling(), 6, [2, *range(10, 80)], tokenizer.pad_token_id)
    observe = partial(
        observe_prompts, width=120, pad_id=tokenizer.pad_token_id, device=torch.device("cpu")
    )
    torch.manual_seed(0)
    rollout = collect_rollout(policy, always, [0, 1], 3, observe)
    assert rollout.trajectory.bincount().tolist() == [3] * 6
    scores = policy.score(rollout.observation, rollout.trace)
    torch.testing.assert_close(scores.logprobs, rollout.logprobs, rtol=0, atol=2e-5)


def test_groups_share_a_prompt(parts):
    model, tokenizer, _ = parts
    policy = TextPolicy(model, Sampling(), 6, [2], tokenizer.pad_token_id)
    observe = partial(
        observe_prompts, width=60, pad_id=tokenizer.pad_token_id, device=torch.device("cpu")
    )
    rollout = collect_rollout(policy, make(parts), [0, 2], 3, observe)
    assert rollout.group.tolist() == [0, 0, 0, 1, 1, 1]
    tokens = rollout.observation.tokens
    assert (tokens[:3] == tokens[0]).all()
    assert (tokens[3:] == tokens[3]).all()
    assert rollout.rewards[3:].isnan().all()
    assert rollout.observation.tokens.shape == (6, 60)


def test_a_prompt_that_is_too_long_is_named():
    with pytest.raises(
        ValueError, match="a prompt takes 4 tokens, text.max_prompt_tokens is 3: raise it"
    ):
        pad_prompts([[1], [1, 2, 3, 4]], 3, 0)


def test_a_system_message_is_put_first(parts):
    chat = ChatFormat(parts[1], system="Be brief.")
    text = chat.render([{"role": "user", "content": "hi"}])
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
