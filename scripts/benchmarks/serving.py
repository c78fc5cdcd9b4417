"""What hostile clients cost the others of a policy server: latency with and without them in turns,
and memory.

    python scripts/benchmark.py serving runs/NAME                       # a run of any size, e.g. of preset=smoke
    python scripts/benchmark.py serving runs/NAME --messages 100000     # as many broken messages, for memory

Robots ask ten times a second each. A round has three periods: quiet; an attacker at a twin, a
server that nobody asks anything; the attacker at the robots' own server. The attacker does one
thing as fast as it can. It takes the processor from everybody, as none from outside would: the twin
tells that share apart. Other work of the machine hits all three.
"""

import argparse
from pathlib import Path


def run(argv: list[str]) -> int:
    from benchmarks.hostile.attacks import ATTACKS

    parser = argparse.ArgumentParser(
        prog="benchmark.py serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="the folder of a run or of an exported policy")
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument(
        "--robots",
        type=int,
        default=4,
        help="clients whose answers are timed (default %(default)s)",
    )
    parser.add_argument(
        "--rounds", type=int, default=4, help="of three periods (default %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="of a period (default %(default)s)"
    )
    parser.add_argument(
        "--messages", type=int, default=10_000, help="broken ones, for memory (default %(default)s)"
    )
    options = parser.parse_args(argv)
    from benchmarks.hostile.process import TWIN, running_server

    with (
        running_server(
            "scripts/serve_policy.py", str(Path(options.run).resolve()), "--port", "0"
        ) as server,
        running_server("-c", TWIN) as twin,
    ):
        print(
            "p50 and p99 in ms: quiet, with the attack at a twin, with the attack at this server; p99 / p99 at a twin"
        )
        for attack in options.attacks:
            measure_attack(server, twin, attack, options)
        measure_memory(server, options.messages)
        print(
            f"exit code of the server {server.end()}; on its error stream: {server.complaints() or 'nothing'}"
        )
    return 0


def measure_attack(server, twin, attack: str, options: argparse.Namespace) -> None:
    """Three kinds of periods in turns; a line with the latencies of each."""
    import numpy as np
    from benchmarks.hostile.attacks import attacking
    from benchmarks.hostile.robots import measure_latencies

    found: dict[str, list[float]] = {"quiet": [], "twin": [], "own": []}
    before, num_done = server.memory_mb(), 0
    for _ in range(options.rounds):
        found["quiet"] += measure_latencies(server, options.robots, options.seconds)
        for target, port in (("twin", twin.port), ("own", server.port)):
            with attacking(port, attack) as done:
                found[target] += measure_latencies(server, options.robots, options.seconds)
        num_done += done.value
    middle, tail = np.array(
        [np.percentile(1000 * np.array(times), (50, 99)) for times in found.values()]
    ).T
    answers = " / ".join(str(len(times)) for times in found.values())
    told = "   ".join(f"{a:.0f} {b:.0f}" for a, b in zip(middle, tail, strict=True))
    print(
        f"{attack:<15} {told}   ratio {tail[2] / tail[1]:.2f}   ({num_done / options.rounds / options.seconds:.0f} a "
        f"second; {answers} answers; memory {before:.0f} -> {server.memory_mb():.0f} MB)",
        flush=True,
    )


def measure_memory(server, num_messages: int) -> None:
    """Broken messages one after the other; memory before, after a tenth of them, and at the end."""
    from benchmarks.hostile.attacks import send_broken

    begin = server.memory_mb()
    first = send_broken(server.port, num_messages // 10, seed=0)
    warm = server.memory_mb()
    rest = send_broken(server.port, num_messages - num_messages // 10, seed=1)
    told = ", ".join(f"{number} {kind}" for kind, number in sorted((first + rest).items()))
    print(
        f"{num_messages} broken messages: {told}; memory {begin:.0f} -> {warm:.0f} -> {server.memory_mb():.0f} MB"
    )
