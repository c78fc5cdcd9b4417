"""One reinforcement-learning update against TRL's loss on the same tensors: seconds and peak memory, in one run.

Both sides score the same answers with the same small language head (embedding, two layers, a vocabulary), take GRPO's
loss, go backward through the same micro-batches and step the same optimizer. Ours is the whole `update`: advantages,
weights, diagnostics, shuffling. TRL is asked for `GRPOTrainer._compute_loss` alone; its advantages are given to it.
Memory is what one update adds, at its peak, to the resident set of a fresh process.
TRL is not among our dependencies: `pip install --no-deps trl` in an environment of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py rl_update", description=__doc__)
    parser.add_argument("--groups", type=int, default=16, help="of 8 answers each")
    parser.add_argument("--draws", type=int, default=64, help="tokens an answer")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, default=32, help="answers a forward pass")
    parser.add_argument(
        "--dull", type=float, default=0.0, help="share of the groups whose answers are all worth the same"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", choices=["ours", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.memory_of:
        print(json.dumps(peak_growth(candidates(options)[options.memory_of])))
        return 0
    from benchmarks.clock import report, side_by_side

    timings = side_by_side(candidates(options), options.rounds)
    report(timings, options.groups * 8, "answers")
    script = [sys.executable, str(Path(__file__).parents[1] / "benchmark.py"), "rl_update", *argv]
    peaks = {}
    for side in timings:
        printed = subprocess.run([*script, "--memory-of", side], capture_output=True, text=True, check=True).stdout
        peaks[side] = json.loads(printed)
        print(f"{side:<4}  peak memory of an update {peaks[side] / 2**20:8.0f} MiB")
    ours, trl = timings["ours"], timings["trl"]
    print(f"ours / TRL: {ours.cpu / trl.cpu:.2f} of the CPU time, {peaks['ours'] / peaks['trl']:.2f} of the memory")
    return 0


def peak_growth(update) -> int:
    """Bytes by which one call raises the resident memory of this process, watched every millisecond."""
    import os
    import threading

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    over, before = threading.Event(), resident()
    peak = before

    def watch():
        nonlocal peak
        while not over.wait(0.001):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    update()
    over.set()
    watcher.join()
    return max(peak, resident()) - before


def candidates(options):
    """Our update and TRL's loss with its backward pass and step, on the same rollout."""
    import torch

    from vla.rl.catalogue import make_algorithm
    from vla.rl.groups import group_relative
    from vla.rl.update import UpdateSettings, update

    torch.manual_seed(0)
    policy, rollout = answers(options)
    algorithm = make_algorithm("grpo", clip_low=0.2, clip_high=0.28)
    settings = UpdateSettings(epochs=1, num_minibatches=1, micro_batch_rows=options.micro_batch, max_grad_norm=1.0)
    optimizer, generator = torch.optim.SGD(policy.parameters(), lr=1e-6), torch.Generator().manual_seed(0)
    advantages = group_relative(rollout.returns, rollout.group, "std").advantages
    loss_of = trl_loss(-(-len(rollout.mask) // options.micro_batch))

    def ours():
        update(policy, algorithm, rollout, optimizer, settings, generator=generator)

    def trl():
        optimizer.zero_grad()
        for rows in torch.arange(len(rollout.mask)).split(options.micro_batch):
            scores = policy.score(rollout.observation.tokens[rows], {"draw": rollout.trace["draw"][rows]})
            loss_of(scores, rollout.mask[rows].long(), rollout.logprobs[rows], advantages[rows]).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()

    return {"trl": trl, "ours": ours}


def answers(options):
    """A policy and a rollout it could have made."""
    import torch
    from torch import nn

    from vla.types import Observation, Rollout, Scores

    class Head(nn.Module):
        """Log-probs and entropy of given words, each from the word before it."""

        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Embedding(options.vocabulary, 128), nn.Linear(128, 256), nn.GELU())
            self.logits = nn.Linear(256, options.vocabulary)

        def score(self, observation, trace):
            before = getattr(observation, "tokens", observation)
            logprobs = self.logits(self.body(before)).log_softmax(-1)
            entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
            return Scores(logprobs.gather(-1, trace["draw"].unsqueeze(-1)).squeeze(-1), entropy)

    policy, num_rows = Head(), options.groups * 8
    before, draw = torch.randint(0, options.vocabulary, (2, num_rows, options.draws))
    mask = torch.arange(options.draws) < torch.randint(options.draws // 2, options.draws + 1, (num_rows, 1))
    with torch.no_grad():
        logprobs = torch.cat([policy.score(b, {"draw": d}).logprobs for b, d in zip(before.split(1), draw.split(1))])
    group = torch.arange(num_rows) // 8
    rewards = torch.where(group < options.dull * options.groups, 1.0, torch.arange(num_rows) % 8 / 8)
    over = torch.ones(num_rows, dtype=torch.bool)
    rollout = Rollout(
        observation=Observation({}, None, before, torch.ones_like(before, dtype=torch.bool)),
        trace={"draw": draw},
        logprobs=logprobs,
        mask=mask,
        rewards=rewards,
        trajectory=torch.arange(num_rows),
        terminated=over,
        truncated=~over,
        group=group,
        version=torch.zeros(num_rows, dtype=torch.long),
    )
    return policy, rollout


def trl_loss(num_micro_batches):
    """`GRPOTrainer._compute_loss` of scores already made; what it reads of a trainer is given by hand."""
    import warnings
    from collections import defaultdict
    from types import SimpleNamespace

    warnings.simplefilter("ignore")
    from trl import GRPOTrainer

    same = {"gather": lambda x: x, "reduce": lambda x, reduction: x, "gather_for_metrics": lambda x: x}
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=1, **same),
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        **{"loss_type": "grpo", "importance_sampling_level": "token", "beta": 0.0},
        **{"epsilon_low": 0.2, "epsilon_high": 0.28, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None},
        **{"use_vllm": False, "aux_loss_enabled": False, "_entropy_bonus_enabled": False},
        current_gradient_accumulation_steps=num_micro_batches,
        _metrics={"train": defaultdict(list)},
    )

    def loss(scores, mask, old_logprobs, advantages):
        trainer._get_per_token_logps_and_entropies = lambda *a, **k: (scores.logprobs, scores.entropy, None)
        inputs = dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), mask)
        inputs |= {"advantages": advantages, "old_per_token_logps": old_logprobs}
        return GRPOTrainer._compute_loss(trainer, None, inputs)

    return loss
