"""Cost of hostile clients to the other clients of a policy server: latency and memory.

    python scripts/benchmark.py serving runs/NAME                       # of preset=smoke, e.g.
    python scripts/benchmark.py serving runs/NAME --messages 100000     # more messages, for memory

Each robot sends ten requests a second. A round has three periods: quiet; an attack on a twin, a
server without clients; the same attack on the robots' own server. The attacker repeats one action
as fast as it can. It shares the processor with the server, which a remote attacker would not: the
twin measures that share. Other load of the machine affects all three periods.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.hostile.process import ServerProcess


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
        help="clients with timed requests (default %(default)s)",
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
            "p50 and p99 in ms: quiet, attack on a twin, attack on this server; "
            "ratio of p99 to that with the twin"
        )
        for attack in options.attacks:
            measure_attack(server, twin, attack, options)
        measure_memory(server, options.messages)
        print(
            f"exit code of the server {server.end()}; "
            f"on its error stream: {server.complaints() or 'nothing'}"
        )
    return 0


def measure_attack(
    server: ServerProcess, twin: ServerProcess, attack: str, options: argparse.Namespace
) -> None:
    """Measure the three kinds of periods in turns; prints a line with the latencies of each."""
    import numpy as np
    from benchmarks.hostile.attacks import attacking
    from benchmarks.hostile.robots import measure_latencies

    latencies: dict[str, list[float]] = {"quiet": [], "twin": [], "own": []}
    before = server.memory_mb()
    num_done = 0
    for _ in range(options.rounds):
        latencies["quiet"] += measure_latencies(server, options.robots, options.seconds)
        for target, port in (("twin", twin.port), ("own", server.port)):
            with attacking(port, attack) as done:
                latencies[target] += measure_latencies(server, options.robots, options.seconds)
        num_done += done.value
    middle, tail = np.array(
        [np.percentile(1000 * np.array(times), (50, 99)) for times in latencies.values()]
    ).T
    rate = num_done / options.rounds / options.seconds
    answers = " / ".join(str(len(times)) for times in latencies.values())
    columns = "   ".join(f"{a:.0f} {b:.0f}" for a, b in zip(middle, tail, strict=True))
    print(
        f"{attack:<15} {columns}   ratio {tail[2] / tail[1]:.2f}   ({rate:.0f} a second; "
        f"{answers} answers; memory {before:.0f} -> {server.memory_mb():.0f} MB)",
        flush=True,
    )


def measure_memory(server: ServerProcess, num_messages: int) -> None:
    """Send broken messages; prints memory before, after a tenth of them, and at the end."""
    from benchmarks.hostile.attacks import send_broken

    begin = server.memory_mb()
    first = send_broken(server.port, num_messages // 10, seed=0)
    warm = server.memory_mb()
    rest = send_broken(server.port, num_messages - num_messages // 10, seed=1)
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted((first + rest).items()))
    print(
        f"{num_messages} broken messages: {counts}; "
        f"memory {begin:.0f} -> {warm:.0f} -> {server.memory_mb():.0f} MB"
    )
