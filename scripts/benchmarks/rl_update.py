"""One reinforcement-learning update against TRL's loss on the same tensors: seconds and peak
memory, in one run.

Both sides score the same answers with the same small language head (embedding, two layers, a
vocabulary), take GRPO's loss, go backward through the same micro-batches and step the same
optimizer. Ours is the whole `update`: advantages, weights, diagnostics, shuffling. TRL is asked for
`GRPOTrainer._compute_loss` alone; its advantages are given to it. Memory is what the first update
adds, at its peak, to the resident set of a process that did nothing before. TRL is not among our
dependencies: `pip install --no-deps trl` in an environment of its own.
"""

import argparse


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
        help="share of the groups whose answers are all worth the same",
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
    ours, trl = timings["ours"], timings["trl"]
    print(
        f"ours / TRL: {ours.cpu / trl.cpu:.2f} of the CPU time, {peaks['ours'] / peaks['trl']:.2f} of the memory"
    )
    return 0


def candidates(options):
    """Our update and TRL's loss with its backward pass and step, on the same rollout, in one
    thread."""
    import torch
    from benchmarks.rl.answers import make_rollout
    from benchmarks.rl.trl_loss import trl_loss

    from vla.rl.algorithm_factory import make_algorithm
    from vla.rl.group_advantages import group_relative
    from vla.rl.update import UpdateSettings, update

    torch.set_num_threads(
        1
    )  # a process with a pool of threads could not be forked to measure its memory
    torch.manual_seed(0)
    policy, rollout = make_rollout(options)
    algorithm = make_algorithm("grpo", clip_low=0.2, clip_high=0.28)
    settings = UpdateSettings(
        epochs=1, num_minibatches=1, micro_batch_rows=options.micro_batch, max_grad_norm=1.0
    )
    optimizer, generator = (
        torch.optim.SGD(policy.parameters(), lr=1e-6),
        torch.Generator().manual_seed(0),
    )
    advantages = group_relative(rollout.returns, rollout.group, "std").advantages
    loss_of = trl_loss(-(-len(rollout.mask) // options.micro_batch))

    def ours():
        update(policy, algorithm, rollout, optimizer, settings, generator=generator)

    def trl():
        optimizer.zero_grad()
        for rows in torch.arange(len(rollout.mask)).split(options.micro_batch):
            scores = policy.score(
                rollout.observation.tokens[rows], {"draw": rollout.trace["draw"][rows]}
            )
            loss_of(
                scores, rollout.mask[rows].long(), rollout.logprobs[rows], advantages[rows]
            ).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()

    return {"trl": trl, "ours": ours}
