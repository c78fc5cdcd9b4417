"""The supervised loop: schedule, clock, what it does with a bad loss, and that it goes on as if
never stopped."""

import copy
import math

import pytest
import torch
from torch import nn

import vla.sft.loop
from vla.sft.loop import SupervisedSettings, SupervisedState, fit
from vla.train.checkpoint import load_checkpoint, save_checkpoint
from vla.train.optim import EMA, make_optimizer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Linear(3, 5), nn.Linear(5, 1)

    def forward(self, batch):
        return self.out(torch.tanh(self.hidden(batch))).squeeze(-1)


def batch_at(step: int) -> torch.Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))


def settings(num_steps=12, max_seconds=None, schedule="cosine", warmup=0.25):
    return SupervisedSettings(num_steps, max_seconds, warmup, schedule, max_grad_norm=1.0)


def run(
    net,
    optimizer,
    state,
    ema=None,
    on_step=lambda step, metrics: None,
    shape=None,
    batches=batch_at,
):
    def loss_of(batch):
        return (net(batch) - batch.sum(-1)).square().mean(), {"rows": float(len(batch))}

    fit(net, loss_of, batches, optimizer, shape or settings(), state, ema, on_step)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_stopped_and_resumed_is_as_if_never_stopped(tmp_path, kind):
    def fresh():
        net = Net()
        return net, make_optimizer(net, kind, 0.01, 0.01, 0.02), EMA(net, 0.9), SupervisedState()

    whole = fresh()
    run(*whole[:2], whole[3], whole[2])
    first = fresh()

    def save_and_stop(step, metrics):
        if step < 5:
            return False
        net, optimizer, ema, state = first
        parts = {
            "net": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": ema.state_dict(),
        }
        save_checkpoint(tmp_path, step, {**parts, "state": vars(state)}, keep=1)
        return True

    run(*first[:2], first[3], first[2], save_and_stop)
    assert first[3].step == 5
    saved = load_checkpoint(tmp_path / "step-000005")
    net, optimizer, ema, _ = second = fresh()
    net.load_state_dict(saved["net"])
    optimizer.load_state_dict(saved["optimizer"])
    ema.load_state_dict(saved["ema"])
    state = SupervisedState(**saved["state"])
    run(net, optimizer, state, ema)
    assert state.step == 12
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, second[0].state_dict()[name]), name
        assert torch.equal(whole[2].average[name], ema.average[name]), name


def test_the_schedule_follows_steps():
    net, scales = Net(), []
    optimizer = make_optimizer(net, "adamw", 0.01, 0.0)
    run(
        net,
        optimizer,
        SupervisedState(),
        on_step=lambda step, metrics: scales.append(metrics["lr_scale"]),
    )
    # Warm-up over round(.25 * 12) = 3 steps, times (1 + cos(pi step / 12)) / 2.
    expected = [min(1, (i + 1) / 3) * (1 + math.cos(math.pi * i / 12)) / 2 for i in range(12)]
    assert scales == pytest.approx(expected)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01] * len(optimizer.param_groups)


def test_the_clock_ends_it_and_the_schedule_follows(monkeypatch):
    now = iter(range(0, 1000, 1))
    monkeypatch.setattr(
        vla.sft.loop.time, "monotonic", lambda: float(next(now))
    )  # every step takes one second
    net, scales, state = Net(), [], SupervisedState()
    run(
        net,
        make_optimizer(net, "adamw", 0.01, 0.0),
        state,
        on_step=lambda step, metrics: scales.append(metrics["lr_scale"]),
        shape=settings(num_steps=100, max_seconds=4.0, schedule="linear", warmup=0.0),
    )
    assert (state.step, state.seconds) == (4, 4.0)
    assert scales == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_step_is_a_clipped_step_at_the_scheduled_rate():
    """One step of AdamW by hand: the first update is the rate times the sign of the gradient."""
    net = nn.Linear(2, 1, bias=False)
    before = net.weight.detach().clone()
    seen = {}
    fit(
        net,
        lambda batch: (1000 * net(torch.tensor([[1.0, -1.0]])).sum(), {}),
        lambda step: None,
        make_optimizer(net, "adamw", 0.1, 0.0),
        settings(num_steps=1, schedule="constant", warmup=0.0),
        SupervisedState(),
        None,
        lambda step, metrics: seen.update(metrics),
    )
    assert seen["grad_norm"] == pytest.approx(1000 * 2**0.5)
    torch.testing.assert_close(
        net.weight.detach(), before - torch.tensor([[0.1, -0.1]]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_leaves_the_weights_and_says_what_to_do(bad):
    net, state = Net(), SupervisedState()
    optimizer, kept = make_optimizer(net, "adamw", 0.01, 0.0), {}

    def keep(step, metrics):
        kept.update(copy.deepcopy(net.state_dict()))

    with pytest.raises(
        FloatingPointError, match=r"step 3: loss .* lower sft.learning_rate or look at the data"
    ):
        run(
            net,
            optimizer,
            state,
            on_step=keep,
            batches=lambda step: batch_at(step) * (bad if step == 3 else 1.0),
        )
    assert state.step == 3
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, kept[name]), name
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_no_steps_change_nothing():
    net, state = Net(), SupervisedState()
    before = copy.deepcopy(net.state_dict())
    run(net, make_optimizer(net, "adamw", 0.01, 0.0), state, shape=settings(num_steps=0))
    assert state.step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
