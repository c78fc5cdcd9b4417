"""Kill runs at random moments, resume them each time, and compare what they end with to a run that
nobody killed.

Each case is run once as a whole and then again in sessions that are killed (SIGKILL) or asked to
stop (SIGTERM, SIGINT) after a random time, until so many signals were sent. Sessions are forked
from one process that has loaded the libraries. Everything is compared bit for bit but times,
memory, plots and what a session says about itself. A signal that can be heard has to end its
session with 130 or 143 and without a traceback.
"""

import argparse
import random
import signal
import sys
from pathlib import Path

from benchmarks.kill.cases import CASES, case_settings
from benchmarks.kill.differences import differences
from benchmarks.kill.sessions import fork_session, load_libraries, wait_for_session

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
    rng, faults, sent = random.Random(options.seed), [], dict.fromkeys(SIGNALS, 0)
    for name in options.cases:
        found = run_case(name, options.kills, rng, options.out, sent)
        print(f"{name}: {options.kills} signals, {'; '.join(found) or 'bit-identical'}", flush=True)
        faults += found
    told = ", ".join(f"{count} {number.name}" for number, count in sent.items())
    print(f"{sum(sent.values())} signals ({told}): {len(faults)} differences", flush=True)
    return 1 if faults else 0


def run_case(name: str, num_kills: int, rng: random.Random, out: Path, sent: dict) -> list[str]:
    """What differs after so many signals; as many runs are killed as it takes."""
    settings = case_settings(name, out)
    whole, log = out / f"{name}-whole", out / f"{name}.log"
    ended, seconds = wait_for_session(fork_session([*settings, f"run_dir={whole}"], log))
    if ended:
        sys.exit(f"{name}: the run that nobody kills ended with {ended}: see {log}")
    found, left, number = [], num_kills, 0
    while left:
        number += 1
        killed = out / f"{name}-killed-{number}"
        left, faults = run_sessions(settings, killed, left, rng, seconds, log, sent)
        found += [f"run {number}: {fault}" for fault in faults + differences(whole, killed)]
    return found


def run_sessions(
    settings: list[str],
    folder: Path,
    left: int,
    rng: random.Random,
    seconds: float,
    log: Path,
    sent: dict,
):
    """Sessions of one run to its end; how many signals are left, and what they did wrong."""
    faults, ended = [], -1
    while ended:
        begun = (folder / "config.yaml").exists()
        process = fork_session(
            [f"resume={folder}"] if begun else [*settings, f"run_dir={folder}"], log
        )
        ended, _ = wait_for_session(process, rng.uniform(0, 0.3 * seconds) if left else None)
        if ended is None:
            number = rng.choice(SIGNALS)
            ended, _ = wait_for_session(process, kill=number)
            left, sent[number] = left - 1, sent[number] + 1
            if (
                ended not in ((-9,) if number == signal.SIGKILL else (128 + number,))
                or "Traceback" in log.read_text()
            ):
                faults.append(
                    f"{number.name} ended a session with {ended}: {log.read_text()[-300:]!r}"
                )
        elif ended:
            return 0, [*faults, f"a session failed: {log.read_text()[-300:]!r}"]
    return left, faults
