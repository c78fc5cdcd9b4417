"""Optimizers, schedules and averaged weights, by small numbers worked out by hand."""

import math
from contextlib import suppress
from copy import deepcopy

import pytest
import torch
from torch import nn

from vla.models.backbone import small_llama
from vla.models.lora import add_lora
from vla.rl.critic import with_critic
from vla.rl.reference import FrozenCopy
from vla.training.muon import Muon, orthogonalise
from vla.training.optim import (
    EMA,
    Schedule,
    copy_weights,
    make_optimizer,
    schedule_scale,
    trainable_parameters,
)


class Model(nn.Module):
    """One of each kind of parameter: embedding (tied to the head), norm, convolution, linear, a
    bare parameter."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.convolution = nn.Conv2d(3, 6, 2)
        self.norm = nn.LayerNorm(6)
        self.hidden = nn.Linear(6, 6)
        self.queries = nn.Parameter(torch.zeros(4, 6))
        self.lm_head = nn.Linear(6, 10, bias=False)
        self.lm_head.weight = self.embedding.weight
        self.value_head = nn.Linear(6, 1)


def names_of(model: nn.Module, parameters: list) -> set[str]:
    return {
        name
        for name, parameter in model.named_parameters()
        if any(parameter is other for other in parameters)
    }


def test_only_weights_of_layers_decay():
    model = Model()
    optimizer = make_optimizer(model, "adamw", 1e-3, 0.1, learning_rates={"value_head": 1e-2})
    found = {
        (g["lr"], g["weight_decay"]): names_of(model, g["params"]) for g in optimizer.param_groups
    }
    rest = {
        "embedding.weight",
        "norm.weight",
        "norm.bias",
        "convolution.bias",
        "hidden.bias",
        "queries",
    }
    assert found == {
        (1e-3, 0.1): {"convolution.weight", "hidden.weight"},
        (1e-3, 0.0): rest,
        (1e-2, 0.1): {"value_head.weight"},
        (1e-2, 0.0): {"value_head.bias"},
    }


def test_muon_takes_hidden_matrices_only():
    model = Model()
    adamw, muon = make_optimizer(model, "muon", 1e-3, 0.0, muon_learning_rate=0.02).optimizers
    assert isinstance(adamw, torch.optim.AdamW)
    assert isinstance(muon, Muon)
    assert names_of(model, muon.param_groups[0]["params"]) == {"hidden.weight"}
    everything = [parameter for group in adamw.param_groups for parameter in group["params"]]
    assert names_of(model, everything) == {name for name, _ in trainable_parameters(model)} - {
        "hidden.weight"
    }


def test_a_frozen_model_is_refused():
    with pytest.raises(ValueError, match="nothing is left to train"):
        make_optimizer(Model().requires_grad_(False), "adamw", 1e-3, 0.0)


def test_together_saves_and_loads_both():
    torch.manual_seed(0)
    first, second = Model(), Model()
    second.load_state_dict(first.state_dict())
    optimizers = [make_optimizer(model, "muon", 1e-3, 0.1, 0.02) for model in (first, second)]

    def step(model: Model, optimizer) -> None:
        model.hidden(model.embedding.weight).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(first, optimizers[0])
    second.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(deepcopy(optimizers[0].state_dict()))
    step(first, optimizers[0])
    step(second, optimizers[1])
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert all(parameter.grad is None for parameter in first.parameters())


def test_orthogonalised_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((8, 8), (4, 12), (12, 4)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(3, *shape)))
        assert 0.6 < values.min() <= values.max() < 1.3


def test_muon_agrees_with_torchs():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False)
    theirs.load_state_dict(ours.state_dict())
    optimizers = [
        Muon([ours.weight], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs.weight], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True),
    ]
    for _ in range(3):
        x = torch.randn(16, 6)
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (layer(x) - x[:, :4]).square().mean().backward()
            optimizer.step()
    # torch iterates in bfloat16 (8 bits): directions agree to about 1 %, of steps of .02.
    assert torch.allclose(ours.weight, theirs.weight, atol=3 * 0.02 * 0.03)


def test_schedules_by_hand():
    assert [schedule_scale("cosine", p) for p in (0.0, 0.5, 1.0, 2.0)] == pytest.approx(
        [1.0, 0.5, 0.0, 0.0]
    )
    assert schedule_scale("cosine", 1 / 3) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)
    assert [schedule_scale("linear", p) for p in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]
    assert [schedule_scale("constant", p) for p in (0.0, 1.0)] == [1.0, 1.0]
    assert [schedule_scale("constant", 0.0, step, 4) for step in (0, 1, 3, 4, 9)] == [
        0.25,
        0.5,
        1.0,
        1.0,
        1.0,
    ]


def test_a_schedule_moves_every_group_and_resumes():
    model = Model()
    optimizer = make_optimizer(model, "adamw", 1.0, 0.0, learning_rates={"value_head": 2.0})
    schedule = Schedule(optimizer, "linear", num_steps=4, warmup_steps=2)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(4):
        schedule.step()
        seen.append(optimizer.param_groups[0]["lr"])
    # warm-up 1/2, 1, 1, 1, 1 times 1, 3/4, 1/2, 1/4, 0
    assert seen == pytest.approx([0.5, 0.75, 0.5, 0.25, 0.0])
    resumed = Schedule(
        make_optimizer(model, "adamw", 1.0, 0.0, learning_rates={"value_head": 2.0}), "linear", 4, 2
    )
    resumed.load_state_dict({**schedule.state_dict(), "num_done": 2})
    assert {group["lr"] for group in resumed.optimizer.param_groups} == {0.5, 1.0}


def test_a_schedule_follows_the_clock_where_that_is_further_on():
    optimizer, elapsed = make_optimizer(Model(), "adamw", 1.0, 0.0), [0.0]
    schedule = Schedule(optimizer, "linear", num_steps=10, elapsed=lambda: elapsed[0])
    rates = []
    for share in (0.0, 0.5, 0.6, 1.0):  # steps are a tenth each
        elapsed[0] = share
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.9, 0.5, 0.4, 0.0])


def test_the_average_follows_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 0.0)
    ema = EMA(layer, decay=0.5)
    nn.init.constant_(layer.weight, 1.0)
    ema.update(layer)
    # d = min(.5, 2 / 11): 0 + (9 / 11) (1 - 0)
    assert float(ema.average["weight"]) == pytest.approx(9 / 11)
    nn.init.constant_(layer.weight, 2.0)
    for _ in range(7):
        ema.update(layer)
    before = float(ema.average["weight"])
    ema.update(layer)
    # d = min(.5, 10 / 19) = .5: half of the way
    assert float(ema.average["weight"]) == pytest.approx((before + 2.0) / 2)


def test_swapping_gives_the_average_and_gives_back():
    layer = nn.Linear(2, 2)
    ema = EMA(layer, decay=0.9)
    own = layer.weight.detach().clone()
    ema.average["weight"].fill_(7.0)
    with suppress(KeyError), ema.use_average(layer):
        seen = layer.weight.detach().clone()
        raise KeyError
    assert torch.equal(seen, torch.full((2, 2), 7.0))
    assert torch.equal(layer.weight, own)
    ema.copy_to(layer)
    assert torch.equal(layer.weight, seen)


def test_an_average_resumes_and_refuses_another_model():
    layer = nn.Linear(2, 2)
    ema = EMA(layer, decay=0.9)
    ema.update(layer)
    other = EMA(nn.Linear(2, 2), decay=0.9)
    other.load_state_dict(ema.state_dict())
    assert other.num_updates == 1
    assert torch.equal(other.average["weight"], ema.average["weight"])
    with pytest.raises(ValueError, match="belong to another model"):
        EMA(nn.Linear(2, 2, bias=False), decay=0.9).load_state_dict(ema.state_dict())


def test_moments_are_loaded_in_the_layout_of_their_weights():
    """A fused step walks memory: moments read back row by row would meet the wrong weights."""
    torch.manual_seed(0)
    pictures = torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)

    def fresh():
        torch.manual_seed(1)
        model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return model, make_optimizer(model, "adamw", 1e-2, 0.0)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(pictures).square().sum().backward()
        optimizer.step()

    whole, optimizer = fresh()
    step(whole, optimizer)
    resumed, again = fresh()
    resumed.load_state_dict(whole.state_dict())
    saved = deepcopy(optimizer.state_dict())
    for part in saved["optimizers"]:
        for kept in part["state"].values():
            kept |= {
                name: value.contiguous() for name, value in kept.items()
            }  # as a file gives them back
    again.load_state_dict(saved)
    for _ in range(2):
        step(whole, optimizer)
        step(resumed, again)
    torch.testing.assert_close(resumed.weight, whole.weight, rtol=0, atol=0)


def test_adapters_need_no_second_copy_of_their_base():
    """Best weights, averaged weights, the reference of the KL penalty and a separate critic: each
    adds at most the size of what is trained."""
    torch.manual_seed(0)
    policy = torch.nn.Module()
    policy.backbone = small_llama(300, 64, 4, 4, 128)
    add_lora(policy.backbone.model, 4, 8)
    policy.value_head = torch.nn.Linear(64, 1)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert 5 * trained < sum(p.numel() for p in policy.parameters())
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}

    def added(tensors) -> int:
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(size for address, size in sizes.items() if address not in own) // 4

    average = EMA(policy, 0.5)
    assert added(average.average.values()) == trained
    assert added(average.averaged_weights(policy).values()) == trained
    assert added(copy_weights(policy).values()) == trained
    assert added(FrozenCopy(policy, 1).frozen.parameters()) == trained
    assert added(with_critic(policy, "separate").critic.parameters()) == trained
