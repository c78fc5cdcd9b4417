"""Programs that try to outlive the sandbox, to take more than their limits, or to disturb whoever
runs them.

Each is tried in every jail that this machine and user allow.
"""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from vla.rewards.code import score_code
from vla.rewards.sample import Sample
from vla.rewards.sandbox import jail as jails
from vla.rewards.sandbox.jail import available_jails, explain_unavailable
from vla.rewards.sandbox.run_python import ProgramLimits, run_python

PROGRAMS = runpy.run_path(str(Path(__file__).with_name("attack_programs.py")))
SURVIVORS, TAKERS, FORBIDDEN = PROGRAMS["SURVIVORS"], PROGRAMS["TAKERS"], PROGRAMS["FORBIDDEN"]
MB = 2**20
LIMITS = ProgramLimits(
    seconds=10, memory_bytes=256 * MB, disk_bytes=8 * MB, num_files=100, num_processes=6
)
SHORT = replace(LIMITS, seconds=1.0)
MARK = f"attack{os.getpid()}"


@pytest.fixture(params=["unshare", "root", "bwrap"], scope="module")
def jail(request):
    if request.param not in available_jails():
        pytest.skip(f"no jail of kind {request.param} here: {explain_unavailable(request.param)}")
    return request.param


def marked(source):
    """The program, under a name that its children inherit and that can be looked for from
    outside."""
    return f"import ctypes, os, signal, sys, time\nctypes.CDLL(None).prctl(15, b{MARK!r}, 0, 0, 0)\n{source}"


def alive():
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if (folder / "comm").read_text().strip() == MARK and state != "Z":
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_nothing_outlives_its_run(jail):
    def run(source):
        outcome = run_python(marked(source), SHORT, jail=jail)
        assert outcome.started, outcome
        return outcome

    with ThreadPoolExecutor(3) as threads:
        outcomes = dict(zip(SURVIVORS, threads.map(run, SURVIVORS.values()), strict=True))
    assert alive() == []
    assert all(outcome.stopped or outcome.returncode == 0 for outcome in outcomes.values()), (
        outcomes
    )


def test_nothing_outlives_whoever_runs_it(jail, tmp_path):
    source = marked("os.setsid()\nprint('on', flush=True)\nwhile True: pass")
    script = tmp_path / "trainer.py"
    script.write_text(
        "from vla.rewards.sandbox.run_python import ProgramLimits, run_python\n"
        f"run_python({source!r}, ProgramLimits(seconds=60), jail={jail!r})"
    )
    trainer = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    deadline = time.monotonic() + 60
    while not alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive()
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive() == []


@pytest.mark.parametrize("name", TAKERS)
def test_no_program_takes_more_than_its_limit(jail, name):
    limit, source = TAKERS[name]
    outcome = run_python(
        marked(source), replace(LIMITS, seconds=1.2, output_bytes=2**18), jail=jail
    )
    assert outcome.started, outcome
    assert alive() == []
    assert sum(map(int, outcome.output.split())) <= 1.1 * getattr(LIMITS, limit), outcome.stopped


def test_the_limits_leave_room_for_honest_programs(jail):
    source = """
import asyncio, multiprocessing, subprocess, sys, tempfile, threading
def square(x): return x * x
async def later(): await asyncio.sleep(0); return "later"
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool: print(pool.map(square, [1, 2, 3]))
    print(subprocess.run(["/bin/echo", "sub"], capture_output=True, text=True).stdout.strip())
    print(subprocess.run([sys.executable, "-c", "print('python')"], capture_output=True, text=True).stdout.strip())
    threads = [threading.Thread(target=print, args=("thread",)) for _ in range(4)]
    [thread.start() for thread in threads]; [thread.join() for thread in threads]
    print(asyncio.run(later()))
    with tempfile.NamedTemporaryFile() as file: print(file.write(b"x" * 10**6))
    print(len(bytearray(2 * 10**8)))
"""
    outcome = run_python(source, ProgramLimits(seconds=60), jail=jail)
    expected = "[1, 4, 9]\nsub\npython\n" + "thread\n" * 4 + "later\n1000000\n200000000\n"
    assert outcome.output.decode() == expected, outcome


def test_from_future_and_line_numbers_are_the_programs_own(jail):
    outcome = run_python("from __future__ import annotations\n1 / 0", LIMITS, jail=jail)
    assert b'"/sandbox/main.py", line 2' in outcome.errors


def test_no_namespaces_mounts_tracing_or_privileges(jail):
    outcome = run_python(marked(FORBIDDEN), LIMITS, jail=jail)
    assert outcome.output == b"done\n", outcome


def test_host_paths_are_not_told(jail):
    if "overlay" not in Path("/proc/filesystems").read_text():
        pytest.skip(
            "the Python installation is a bind mount here, and the kernel tells where one comes "
            "from"
        )
    outcome = run_python("print(open('/proc/self/mountinfo').read())", LIMITS, jail=jail)
    prefix = sys.base_prefix.encode()
    assert prefix == b"/usr" or prefix not in outcome.output
    assert b"sandbox-" not in outcome.output


def test_a_greedy_program_does_not_change_the_score_of_another(jail):
    greedy = """
import os, time
for _ in range(30):
    try:
        if os.fork() == 0: held = bytearray(2**24); time.sleep(60)
    except (OSError, MemoryError): break
time.sleep(60)
"""
    fair = """
import threading, time
time.sleep(0.5)
def add(a, b):
    out = []
    threads = [threading.Thread(target=lambda: out.append(a + b)) for _ in range(6)]
    [thread.start() for thread in threads]; [thread.join() for thread in threads]
    open("own", "wb").write(b"x" * 2**20)
    return out[0]
"""
    facts = {"tests": [{"call": "add(2, 3)", "output": "5"}]}
    samples = [Sample("", program, "", facts=facts) for program in (greedy, fair, greedy, fair)]
    scores = []
    limits = replace(LIMITS, seconds=2.5)
    thread = threading.Thread(
        target=lambda: scores.extend(score_code(samples[:1] * 2, limits, jail=jail))
    )
    thread.start()
    assert score_code(samples[1::2], LIMITS, jail=jail) == [1.0, 1.0]
    thread.join()
    assert scores == [0.0, 0.0]


def test_bubblewrap_without_capabilities_counts_files(monkeypatch):
    if "bwrap" not in available_jails():
        pytest.skip(f"no bubblewrap here: {explain_unavailable('bwrap')}")
    monkeypatch.setattr(jails, "_SETUP", ())  # as under Ubuntu's AppArmor profile for bwrap
    source = (
        "import os\nfor i in range(10**6):\n  os.mkdir(str(i))\n  if i == 90: os.write(1, b'90')"
    )
    outcome = run_python(source, LIMITS, jail="bwrap")
    assert (outcome.output, outcome.stopped) == (b"90", "files")
    outcome = run_python(marked(SURVIVORS["a fork bomb"]), SHORT, jail="bwrap")
    assert outcome.stopped
    assert alive() == []


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can give up a capability"
)
def test_root_of_a_plain_container_has_a_user_namespace():
    if "unshare" not in available_jails():
        pytest.skip(f"no user namespaces here: {explain_unavailable('unshare')}")
    script = "from vla.rewards.sandbox.run_python import *\nprint(choose_jail(), run_python('print(5)', ProgramLimits(seconds=30)).output)"
    command = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", script]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert result.stdout == "unshare b'5\\n'\n", result.stderr
