"""The supervised loop: schedule, clock, what it does with a bad loss, and that it goes on as if
never stopped."""

import copy
import math

import pytest
import torch
from torch import nn

import vla.sft.loop
from vla.sft.loop import SupervisedSettings, SupervisedTrainer
from vla.threads import Threads
from vla.training.checkpoint import load_checkpoint, save_checkpoint


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Linear(3, 5), nn.Linear(5, 1)

    def forward(self, batch):
        return self.out(torch.tanh(self.hidden(batch))).squeeze(-1)


def batch_at(step: int) -> torch.Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))


def settings(num_steps=12, warmup_steps=3, **values):
    values = {"learning_rate": 0.01, "max_grad_norm": 1.0, **values}
    return SupervisedSettings(
        num_steps=num_steps, batch_size=8, warmup_steps=warmup_steps, **values
    )


def run(trainer, on_step=lambda step, metrics: None, batches=batch_at):
    def loss_of(batch):
        return (trainer.module(batch) - batch.sum(-1)).square().mean(), {"rows": float(len(batch))}

    trainer.train(lambda step: [batches(step)], loss_of, on_step)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_stopped_and_resumed_is_as_if_never_stopped(tmp_path, kind):
    def fresh():
        shape = settings(optimizer=kind, muon_learning_rate=0.02, weight_decay=0.01, ema_decay=0.9)
        return SupervisedTrainer(Net(), shape)

    whole = fresh()
    run(whole)
    first = fresh()

    def save_and_stop(step, metrics):
        if step < 5:
            return False
        save_checkpoint(
            tmp_path, step, {"net": first.module.state_dict(), **first.state_dict()}, keep=1
        )
        return True

    run(first, save_and_stop)
    assert first.step == 5
    saved = load_checkpoint(tmp_path / "step-000005")
    second = fresh()
    second.module.load_state_dict(saved["net"])
    second.load_state_dict(saved)
    run(second)
    assert second.step == 12
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name
        assert torch.equal(whole.ema.average[name], second.ema.average[name]), name


@pytest.mark.parametrize("threads", [1, 2])
def test_micro_batches_add_up_to_the_batch(threads):
    """A loss that is a sum over rows divided by the rows of the batch, in one piece and in four."""
    whole, cut = (SupervisedTrainer(Net(), settings(3), threads=Threads(threads)) for _ in range(2))
    metrics: dict[int, list] = {0: [], 1: []}
    for number, (trainer, size) in enumerate(((whole, 8), (cut, 2))):

        def loss_of(rows, net=trainer.module):
            return (net(rows) - rows.sum(-1)).square().sum() / 8, {"rows": float(len(rows))}

        trainer.train(
            lambda step, size=size: batch_at(step).split(size),
            loss_of,
            lambda step, values, number=number: metrics[number].append(values),
        )
    for one, other in zip(metrics[0], metrics[1], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
        assert one["rows"] == 8
    for name, tensor in whole.module.state_dict().items():
        torch.testing.assert_close(tensor, cut.module.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_the_schedule_follows_steps():
    scales = []
    trainer = SupervisedTrainer(Net(), settings())
    run(trainer, lambda step, metrics: scales.append(metrics["lr_scale"]))
    # Warm-up over 3 steps, times (1 + cos(pi step / 12)) / 2.
    expected = [min(1, (i + 1) / 3) * (1 + math.cos(math.pi * i / 12)) / 2 for i in range(12)]
    assert scales == pytest.approx(expected)
    groups = trainer.optimizer.param_groups
    assert [group["lr"] for group in groups] == [0.01] * len(groups)


def test_the_clock_ends_it_and_the_schedule_follows(monkeypatch):
    now = iter(range(0, 1000, 1))
    monkeypatch.setattr(
        vla.sft.loop.time, "monotonic", lambda: float(next(now))
    )  # every step takes one second
    scales = []
    trainer = SupervisedTrainer(
        Net(), settings(num_steps=100, max_seconds=4.0, schedule="linear", warmup_steps=0)
    )
    run(trainer, lambda step, metrics: scales.append(metrics["lr_scale"]))
    assert (trainer.step, trainer.seconds) == (4, 4.0)
    assert scales == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_step_is_a_clipped_step_at_the_scheduled_rate():
    """One step of AdamW by hand: the first update is the rate times the sign of the gradient."""
    net = nn.Linear(2, 1, bias=False)
    before = net.weight.detach().clone()
    seen = {}
    shape = settings(num_steps=1, schedule="constant", warmup_steps=0, learning_rate=0.1)
    SupervisedTrainer(net, shape).train(
        lambda step: [None],
        lambda batch: (1000 * net(torch.tensor([[1.0, -1.0]])).sum(), {}),
        lambda step, metrics: seen.update(metrics),
    )
    assert seen["grad_norm"] == pytest.approx(1000 * 2**0.5)
    torch.testing.assert_close(
        net.weight.detach(), before - torch.tensor([[0.1, -0.1]]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_leaves_the_weights_and_says_what_to_do(bad):
    kept = {}
    trainer = SupervisedTrainer(Net(), settings(learning_rate_name="sft.learning_rate"))

    def keep(step, metrics):
        kept.update(copy.deepcopy(trainer.module.state_dict()))

    with pytest.raises(
        FloatingPointError,
        match=r"step 4: loss .* lower sft.learning_rate \(0.01\) or look at the data",
    ):
        run(trainer, keep, lambda step: batch_at(step) * (bad if step == 3 else 1.0))
    assert trainer.step == 3
    for name, tensor in trainer.module.state_dict().items():
        assert torch.equal(tensor, kept[name]), name
    assert trainer.optimizer.param_groups[0]["lr"] == 0.01


def test_no_steps_change_nothing():
    trainer = SupervisedTrainer(Net(), settings(num_steps=0, warmup_steps=0))
    before = copy.deepcopy(trainer.module.state_dict())
    run(trainer)
    assert trainer.step == 0
    after = trainer.module.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
