"""Kill runs at random moments, resume them, and compare the results to an uninterrupted run.

Each case runs once as a whole. It then runs again in sessions that end by SIGKILL, SIGTERM or
SIGINT after a random time, until `--kills` signals were sent. Sessions are forked from one process
that has loaded the libraries. All files are compared bit for bit, without times, memory, plots and
records of sessions. SIGTERM and SIGINT must end a session with 143 or 130 and without a traceback.
"""

import argparse
import random
import signal
import sys
from pathlib import Path

from benchmarks.kill.cases import CASES, case_settings
from benchmarks.kill.differences import differences
from benchmarks.kill.sessions import fork_session, load_libraries, wait_for_session

SignalCounts = dict[signal.Signals, int]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py kills", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--kills", type=int, default=8, help="signals a case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/kills"), help="a new folder for the runs"
    )
    options = parser.parse_args(argv)
    if options.out.exists():
        parser.error(f"--out {options.out} exists: give a new folder")
    options.out.mkdir(parents=True)
    load_libraries()
    rng = random.Random(options.seed)
    faults: list[str] = []
    num_sent = dict.fromkeys(SIGNALS, 0)
    for name in options.cases:
        own = run_case(name, options.kills, rng, options.out, num_sent)
        print(f"{name}: {options.kills} signals, {'; '.join(own) or 'bit-identical'}", flush=True)
        faults += own
    counts = ", ".join(f"{count} {number.name}" for number, count in num_sent.items())
    print(f"{sum(num_sent.values())} signals ({counts}): {len(faults)} differences", flush=True)
    return 1 if faults else 0


def run_case(
    name: str, num_kills: int, rng: random.Random, out: Path, num_sent: SignalCounts
) -> list[str]:
    """The differences after `num_kills` signals, over as many runs as they need."""
    settings = case_settings(name, out)
    whole = out / f"{name}-whole"
    log = out / f"{name}.log"
    ended, seconds = wait_for_session(fork_session([*settings, f"run_dir={whole}"], log))
    if ended:
        sys.exit(f"{name}: the uninterrupted run ended with {ended}: see {log}")
    differing: list[str] = []
    num_left = num_kills
    number = 0
    while num_left:
        number += 1
        killed = out / f"{name}-killed-{number}"
        num_left, faults = run_sessions(settings, killed, num_left, rng, seconds, log, num_sent)
        differing += [f"run {number}: {fault}" for fault in faults + differences(whole, killed)]
    return differing


def run_sessions(
    settings: list[str],
    folder: Path,
    num_left: int,
    rng: random.Random,
    seconds: float,
    log: Path,
    num_sent: SignalCounts,
) -> tuple[int, list[str]]:
    """Run the sessions of one run to its end; the number of signals left, and the faults."""
    faults: list[str] = []
    ended: int | None = -1
    while ended:
        begun = (folder / "config.yaml").exists()
        process = fork_session(
            [f"resume={folder}"] if begun else [*settings, f"run_dir={folder}"], log
        )
        ended, _ = wait_for_session(process, rng.uniform(0, 0.3 * seconds) if num_left else None)
        if ended is None:
            number = rng.choice(SIGNALS)
            ended, _ = wait_for_session(process, kill=number)
            num_left -= 1
            num_sent[number] += 1
            if (
                ended not in ((-9,) if number == signal.SIGKILL else (128 + number,))
                or "Traceback" in log.read_text()
            ):
                faults.append(
                    f"{number.name} ended a session with {ended}: {log.read_text()[-300:]!r}"
                )
        elif ended:
            return 0, [*faults, f"a session failed: {log.read_text()[-300:]!r}"]
    return num_left, faults
