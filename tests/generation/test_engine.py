"""Inference servers draw for a policy: a real HTTP server that speaks the routes of vLLM and SGLang
has one of our models behind it."""

import copy
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.generation.inference_server import SIGNATURES, serving
from vla.config import ConfigError, load
from vla.generation.engine import Engine
from vla.generation.http_client import HttpClient
from vla.generation.inference_servers import SERVERS, SamplingRequest, make_completion
from vla.generation.sampling import Sampling
from vla.generation.server_engine import PROMPTS_PER_REQUEST, ServerEngine
from vla.generation.weight_transfer import FolderTransfer, NcclTransfer, merged_weights, save_merged
from vla.models.lora import add_lora
from vla.policies.text import TextPolicy
from vla.text.tiny_language_model import tiny_language_model
from vla.training.optim import make_optimizer
from vla.types import Observation

STOP_IDS = range(2, 40)


@pytest.fixture(params=["vllm", "sglang"])
def kind(request):
    return request.param


@pytest.fixture
def model():
    return tiny_language_model(["what is"], weight_scale=0.3)[0]


@pytest.fixture
def server(kind, tmp_path):
    """(state, URL) of a server that was started with other weights than the policy's."""
    tiny_language_model(["what is"], seed=5)[0].save_pretrained(tmp_path / "launched")
    with serving(kind, tmp_path / "launched") as started:
        yield started


def make_engine(kind, url, model, folder, patience=30.0):
    server = SERVERS[kind](HttpClient(url, timeout_seconds=patience))
    return ServerEngine(model, server, FolderTransfer(server, folder), patience)


@pytest.fixture
def policy(kind, server, model, tmp_path):
    engine = make_engine(kind, server[1], model, tmp_path / "weights")
    assert isinstance(engine, Engine)
    return TextPolicy(model, Sampling(0.8), 6, STOP_IDS, 0, value_head=True, engine=engine)


@pytest.fixture
def observation():
    return prompts(3)


def prompts(rows):
    mask = torch.arange(5) < torch.tensor([5, 3, 4] * rows)[:rows, None]
    return Observation({}, None, torch.randint(3, 320, (rows, 5)).masked_fill(~mask, 0), mask)


def change(model):
    """A step of the optimizer of a run."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    make_optimizer(model, "adamw", learning_rate=0.05, weight_decay=0.0).step()


def test_draws_are_scored_alike_and_follow_the_weights(policy, observation):
    torch.nn.init.normal_(policy.value_head.weight)
    for num_pushes in (1, 2, 2):
        decision = policy.act(observation)
        scores = policy.score(observation, decision.trace)
        torch.testing.assert_close(scores.logprobs, decision.logprobs, rtol=0, atol=2e-5)
        torch.testing.assert_close(scores.values, decision.values)
        assert policy.engine.num_pushes == num_pushes
        if num_pushes == 1:
            change(policy.model)
    assert copy.deepcopy(policy).engine is policy.engine  # as a reference, which only scores


def test_greedy_completions_are_those_of_our_own_generation(policy, observation):
    served = policy.act(observation, greedy=True)
    policy.engine = None
    own = policy.act(observation, greedy=True)
    assert torch.equal(served.action, own.action)
    assert torch.equal(served.mask, own.mask)


def test_many_prompts_keep_their_order(policy, server):
    many = prompts(PROMPTS_PER_REQUEST + 2)
    decision = policy.act(many)
    scores = policy.score(many, decision.trace)
    torch.testing.assert_close(scores.logprobs, decision.logprobs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "fault", [503, 429, "drop", "half", "abort"], ids=["busy", "limited", "drop", "half", "abort"]
)
def test_a_failing_answer_is_asked_for_again(policy, server, observation, fault):
    policy.act(observation)
    state, _ = server
    state.faults = [None, fault]  # the version is asked for first
    decision = policy.act(observation)
    scores = policy.score(observation, decision.trace)
    torch.testing.assert_close(scores.logprobs, decision.logprobs, rtol=0, atol=2e-5)
    assert not state.faults
    assert policy.engine.num_repeated == (1 if fault in ("half", "abort") else 0)


@pytest.mark.parametrize("before_drawing", [True, False])
def test_a_server_that_was_started_again_gets_the_weights_again(
    policy, server, observation, before_drawing
):
    policy.act(observation)
    state, _ = server
    state.faults = [state.start] if before_drawing else [None, state.start]
    decision = policy.act(observation)
    scores = policy.score(observation, decision.trace)
    torch.testing.assert_close(scores.logprobs, decision.logprobs, rtol=0, atol=2e-5)
    assert policy.engine.num_pushes == 2


def test_two_runs_on_one_server_are_found_out(policy, server, observation):
    state, _ = server

    def replace():
        state.version = "another run"

    answer = state.answer

    def answer_and_replace(route, body):
        if route in ("/v1/completions", "/generate"):
            replace()
        return answer(route, body)

    state.answer = answer_and_replace
    with pytest.raises(ValueError, match="replaced 5 times while it drew; does another run use"):
        policy.act(observation)


def test_a_server_that_is_gone_is_named(kind, model, tmp_path, observation):
    engine = make_engine(kind, "http://127.0.0.1:9", model, tmp_path, patience=0.5)
    policy = TextPolicy(model, Sampling(), 6, STOP_IDS, 0, engine=engine)
    with pytest.raises(ValueError, match=r"engine_url \(http://127.0.0.1:9\): no answer for"):
        policy.act(observation)


def test_a_request_that_is_refused_is_not_repeated(policy, server, observation):
    state, _ = server
    state.faults = [400]
    with pytest.raises(ValueError, match="the server refuses: HTTP 400"):
        policy.act(observation)


def test_answers_that_stay_incomplete_end_the_run(policy, server, observation):
    policy.act(observation)
    state, _ = server
    state.faults = [None, *["half"] * 6]
    with pytest.raises(ValueError, match="1 of 3 prompts got no complete completion in 6 answers"):
        policy.act(observation)


def test_log_probabilities_of_another_distribution_are_refused(policy, server, observation):
    server[0].temperature_in_logprobs = False
    with pytest.raises(ValueError, match=r"by 0.5 nats a token .* --logprobs-mode processed"):
        policy.act(observation)


def test_adapters_reach_the_server_merged(kind, server, model, tmp_path, observation):
    wrapped = add_lora(model, rank=2, alpha=8, wrap=True)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    engine = make_engine(kind, server[1], wrapped, tmp_path / "weights")
    policy = TextPolicy(wrapped, Sampling(), 6, STOP_IDS, 0, engine=engine)
    decision = policy.act(observation)
    scores = policy.score(observation, decision.trace)
    torch.testing.assert_close(scores.logprobs, decision.logprobs, rtol=0, atol=2e-5)


def test_merging_leaves_the_model_and_its_names(model, tmp_path):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    wrapped = add_lora(model, rank=2, alpha=8, wrap=True)
    merged = dict(merged_weights(wrapped))
    assert merged.keys() == before.keys()
    for name, weight in before.items():  # B is 0 at the start
        assert torch.equal(merged[name], weight)
    save_merged(wrapped, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.state_dict().keys() == before.keys()


def test_the_routes_of_nccl_are_those_of_the_package(model, monkeypatch):
    """The transfer between GPUs has no GPU here: its requests are checked."""
    sent = {}

    class Client(HttpClient):
        def get(self, route):
            sent[route] = {}
            return {"world_size": 2, "weight_version": "default"}

        def post(self, route, body):
            sent[route] = body
            return {}

    server = SERVERS["vllm"](Client("http://a", 1.0))
    transfer = NcclTransfer.__new__(NcclTransfer)
    transfer.server, transfer.device = server, torch.device("cpu")
    transfer._group, transfer._server_version = None, None
    monkeypatch.setattr("torch.cuda.nccl.unique_id", lambda: b"u" * 128)
    monkeypatch.setattr("torch.cuda.nccl.init_rank", lambda size, uid, rank: (size, uid, rank))
    monkeypatch.setattr("torch.cuda.nccl.all_reduce", lambda tensors, comms: None)
    received = []
    monkeypatch.setattr(
        "torch.cuda.nccl.broadcast", lambda tensors, root, comms: received.extend(tensors)
    )
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: None)
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext())
    transfer.push(model, "run-1")
    signatures = SIGNATURES["vllm"]
    for route, body in sent.items():
        assert route in signatures["routes"]
        assert set(body) <= set(signatures["requests"].get(route, []))
    init = sent["/init_weight_transfer_engine"]["init_info"]
    assert set(init) <= set(signatures["requests"]["nccl init_info"])
    assert (init["rank_offset"], init["world_size"]) == (1, 3)
    info = sent["/update_weights"]["update_info"]
    assert set(info) <= set(signatures["requests"]["nccl update_info"])
    assert [list(weight.shape) for weight in received] == info["shapes"]
    assert "model.embed_tokens.weight" in info["names"]
    assert sent["/finish_weight_update"] == {"weight_version": "run-1"}
    order = list(sent)
    steps = ["/start_weight_update", "/update_weights", "/finish_weight_update"]
    assert all(order.index(a) < order.index(b) for a, b in pairwise(steps))


@pytest.mark.parametrize(
    ("tokens", "logprobs", "reason", "expected"),
    [
        ([5, 6, 2], [-1.0, -1.0, -1.0], "stop", (5, 6, 2)),
        ([5, 6, 7, 8], [-1.0] * 4, "length", (5, 6, 7, 8)),
        ([5, 2, 7], [-1.0] * 3, "length", (5, 2)),  # beyond the stop token
        ([5, 6, 7, 8, 9], [-1.0] * 5, "length", (5, 6, 7, 8)),  # beyond the limit
        ([5, 6], [-1.0, -1.0], "stop", None),  # ended without a stop token
        ([5, 6, 2], [-1.0, -1.0], "stop", None),
        ([5, 6, 2], [-1.0, float("nan"), -1.0], "stop", None),
        ([5, 6, 2], [-1.0, None, -1.0], "stop", None),
        ([5, 6, 2], [-1.0, -1.0, -1.0], "abort", None),
        ([], [], "stop", None),
        (None, None, None, None),
    ],
)
def test_a_completion_is_complete_or_none(tokens, logprobs, reason, expected):
    completion = make_completion(tokens, logprobs, reason, SamplingRequest(1.0, 4, (2,)))
    assert (completion.tokens if completion else None) == expected


SERVED = ["mode=text", "language_model=hub", "language_model.engine=vllm"]
URL = "language_model.engine_url=http://localhost:8000"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([URL], "rl.importance_cap .null. must be set under language_model.engine=vllm"),
        (["rl.importance_cap=2"], "engine_url .null. must be set .* vllm serve MODEL"),
        (
            [URL, "language_model.engine=sglang", "language_model.engine_transfer=nccl"],
            "engine_transfer .nccl. is for language_model.engine=vllm",
        ),
        ([URL, "rl.importance_cap=2", "text.sampling.top_k=5"], "text.sampling.top_k .5. filters"),
        (
            [URL, "rl.importance_cap=2", "text=rlhf", "text.generation.sampling.top_p=0.9"],
            "text.generation.sampling.top_p .0.9. filters tokens",
        ),
        ([URL, "text=control"], "text.guidance .* combines several prompts at every token"),
        (["language_model.engine_url=localhost:8000"], "language_model.engine_url"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load([*SERVED, *overrides])


def test_a_setting_of_servers_without_a_server_is_refused():
    with pytest.raises(ConfigError, match="engine_url.* language_model.engine is own"):
        load(["mode=text", "language_model=hub", URL])


def test_nccl_needs_a_gpu(model):
    with pytest.raises(ValueError, match="engine_transfer=nccl sends from a GPU"):
        NcclTransfer(SERVERS["vllm"](HttpClient("http://a", 1)), torch.device("cpu"))
