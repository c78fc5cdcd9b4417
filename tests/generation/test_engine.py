"""vLLM is not among our dependencies: a module that has its interface stands in for it."""

import copy
import sys
import types

import pytest
import torch

from vla.config import ConfigError, load
from vla.generation.engine import Engine, VllmEngine
from vla.generation.generate import generate
from vla.generation.sampling import Sampling
from vla.policies.text import TextPolicy
from vla.text.tiny_language_model import tiny_language_model
from vla.types import Observation


class FakeLLM:
    """Draws with our own generation, on a copy of the weights that only `load_weights` changes."""

    def __init__(self, model, **settings):
        assert settings["logprobs_mode"] == "processed_logprobs"
        self.model, self.num_loads, self.num_resets = (
            tiny_language_model(["what is"], weight_scale=0.3)[0],
            0,
            0,
        )
        runner = types.SimpleNamespace(model=types.SimpleNamespace(load_weights=self.load))
        worker = types.SimpleNamespace(model_runner=runner)
        self.llm_engine = types.SimpleNamespace(
            model_executor=types.SimpleNamespace(driver_worker=worker)
        )

    def load(self, weights):
        self.model.load_state_dict(dict(weights))
        self.num_loads += 1

    def reset_prefix_cache(self):
        self.num_resets += 1

    def generate(self, prompts, settings, use_tqdm):
        outputs = []
        for prompt in prompts:
            ids = torch.tensor([prompt["prompt_token_ids"]])
            greedy = settings["temperature"] == 0
            sampling = Sampling() if greedy else Sampling(settings["temperature"])
            limits = (settings["max_tokens"], settings["stop_token_ids"], 0, greedy)
            drawn = generate(
                self.model, ids, torch.ones_like(ids, dtype=torch.bool), sampling, *limits
            )
            said = drawn.tokens[0][drawn.mask[0]].tolist()
            logprobs = [
                {token: types.SimpleNamespace(logprob=float(value))}
                for token, value in zip(said, drawn.logprobs[0], strict=False)
            ]
            completion = types.SimpleNamespace(token_ids=said, logprobs=logprobs)
            outputs.append(types.SimpleNamespace(outputs=[completion]))
        return outputs


@pytest.fixture
def policy(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "vllm", types.SimpleNamespace(LLM=FakeLLM, SamplingParams=dict)
    )
    model = tiny_language_model(["what is"], weight_scale=0.3)[0]
    engine = VllmEngine(model, "a-model")
    assert isinstance(engine, Engine)
    return TextPolicy(
        model, Sampling(0.8), 6, list(range(2, 40)), 0, value_head=True, engine=engine
    )


@pytest.fixture
def observation():
    mask = torch.arange(5) < torch.tensor([5, 3, 5])[:, None]
    return Observation({}, None, torch.randint(3, 320, (3, 5)).masked_fill(~mask, 0), mask)


def test_what_vllm_draws_is_scored_alike_and_follows_the_weights(policy, observation):
    torch.nn.init.normal_(policy.value_head.weight)
    for num_loads in (0, 1, 1):
        decision = policy.act(observation)
        scores = policy.score(observation, decision.trace)
        torch.testing.assert_close(scores.logprobs, decision.logprobs, rtol=0, atol=2e-5)
        torch.testing.assert_close(scores.values, decision.values)
        assert policy.engine._llm.num_loads == policy.engine._llm.num_resets == num_loads
        if num_loads == 0:
            with torch.no_grad():
                for parameter in policy.model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
    assert copy.deepcopy(policy).engine is policy.engine  # as a reference, which only scores
    assert torch.equal(
        policy.act(observation, greedy=True).action, policy.act(observation, greedy=True).action
    )


def test_what_vllm_cannot_do_is_said(policy, observation, monkeypatch):
    policy.sampling = Sampling(top_k=5)
    with pytest.raises(ValueError, match="draws without filters: set top_k .5. to 0"):
        policy.act(observation)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="needs the package vllm, which is not installed"):
        VllmEngine(policy.model, "a-model")
    with pytest.raises(
        ConfigError, match="rl.importance_cap .null. must be set under language_model.engine=vllm"
    ):
        load(["mode=text", "language_model.engine=vllm"])
