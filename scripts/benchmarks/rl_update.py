"""One update of our RL core and of TRL's loss on the same tensors: seconds and peak memory.

Both sides score the same answers with the same small language model (embedding, two layers, a
vocabulary). They take GRPO's loss, its gradient by the same micro-batches, and a step of the same
optimizer. Ours is the whole `update`: advantages, weights, diagnostics, shuffling. TRL's side is
`GRPOTrainer._compute_loss` alone, with given advantages. Memory is the peak growth of the resident
set by the first update of a fresh process. TRL is not a dependency: `pip install --no-deps trl` in
an environment of its own.
"""

import argparse
from collections.abc import Callable
from typing import Any


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py rl_update", description=__doc__)
    parser.add_argument("--groups", type=int, default=8, help="of 8 answers each")
    parser.add_argument("--draws", type=int, default=64, help="tokens an answer")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, default=32, help="answers a forward pass")
    parser.add_argument(
        "--dull",
        type=float,
        default=0.0,
        help="share of the groups whose rewards are all equal",
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    from benchmarks.clock import print_rates, time_candidates
    from benchmarks.rl.memory import peak_in_child

    sides = candidates(options)
    peaks = {side: peak_in_child(call) for side, call in sides.items()}
    timings = time_candidates(sides, options.rounds)
    print_rates(timings, options.groups * 8, "answers")
    for side, peak in peaks.items():
        print(f"{side:<4}  peak memory of an update {peak / 2**20:8.0f} MiB")
    ours = timings["ours"]
    trl = timings["trl"]
    print(
        f"ours / TRL: {ours.cpu / trl.cpu:.2f} of the CPU time, "
        f"{peaks['ours'] / peaks['trl']:.2f} of the memory"
    )
    return 0


def candidates(options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Our update, and TRL's loss with backward pass and step, on the same rollout in one thread."""
    import torch
    from benchmarks.rl.answers import make_rollout
    from benchmarks.rl.trl_loss import trl_loss

    from vla.rl.algorithm_factory import make_algorithm
    from vla.rl.group_advantages import group_relative
    from vla.rl.update import UpdateSettings, update

    # A process with a pool of threads cannot be forked to measure its memory.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy, rollout = make_rollout(options)
    algorithm = make_algorithm("grpo", clip_low=0.2, clip_high=0.28)
    settings = UpdateSettings(
        epochs=1, num_minibatches=1, micro_batch_rows=options.micro_batch, max_grad_norm=1.0
    )
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-6)
    generator = torch.Generator().manual_seed(0)
    advantages = group_relative(rollout.returns, rollout.group, "std").advantages
    loss = trl_loss(-(-len(rollout.mask) // options.micro_batch))

    def ours() -> None:
        # An update only scores, so the policy needs no `act`.
        scorer: Any = policy
        update(scorer, algorithm, rollout, optimizer, settings, generator=generator)

    def trl() -> None:
        optimizer.zero_grad()
        for rows in torch.arange(len(rollout.mask)).split(options.micro_batch):
            scores = policy.score(
                rollout.observation.tokens[rows], {"draw": rollout.trace["draw"][rows]}
            )
            loss(
                scores, rollout.mask[rows].long(), rollout.logprobs[rows], advantages[rows]
            ).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()

    return {"trl": trl, "ours": ours}
