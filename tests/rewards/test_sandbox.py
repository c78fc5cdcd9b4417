import math
import socket
import time

import numpy as np
import pytest

from vla.rewards.code import extract_program, read_tests, score_code
from vla.rewards.compose import Rewards
from vla.rewards.sample import Sample
from vla.rewards.sandbox import jail as jails
from vla.rewards.sandbox.jail import available_jails
from vla.rewards.sandbox.run_python import ProgramLimits, run_python

JAILS = available_jails()
LIMITS = ProgramLimits(seconds=1.0)
pytestmark = pytest.mark.skipif(
    not JAILS, reason="neither bubblewrap nor namespaces are available to this user"
)


@pytest.fixture(params=JAILS or ["none"])
def jail(request):
    return request.param


def test_an_honest_program(jail):
    outcome = run_python(
        "import math\nprint(math.factorial(int(input())))", ProgramLimits(), b"5\n", jail=jail
    )
    assert outcome.started
    assert (outcome.output, outcome.returncode, outcome.stopped) == (b"120\n", 0, None)


def test_an_infinite_loop_ends(jail):
    started = time.monotonic()
    outcome = run_python("print('before', flush=True)\nwhile True: pass", LIMITS, jail=jail)
    assert time.monotonic() - started < 10
    assert outcome.stopped == "time"
    assert outcome.output == b"before\n"


def test_sleeping_and_ignoring_signals_does_not_help(jail):
    source = "import signal, time\nfor s in range(1, 32):\n  try: signal.signal(s, signal.SIG_IGN)\n  except OSError: pass\n"
    assert run_python(source + "time.sleep(1000)", LIMITS, jail=jail).stopped == "time"


def test_a_memory_bomb_fails_alone(jail):
    outcome = run_python("x = bytearray(2 ** 33)\nprint('got it')", LIMITS, jail=jail)
    assert b"got it" not in outcome.output
    assert b"MemoryError" in outcome.errors


def test_a_gigabyte_of_output_is_cut(jail):
    source = "import sys\nfor _ in range(1024): sys.stdout.write('x' * 2 ** 20)"
    outcome = run_python(source, ProgramLimits(seconds=20), jail=jail)
    assert outcome.stopped == "output"
    assert len(outcome.output) == LIMITS.output_bytes


def test_a_huge_file_is_refused(jail):
    outcome = run_python("open('big', 'wb').write(b'x' * 2 ** 24)", LIMITS, jail=jail)
    assert outcome.returncode != 0
    assert b"File too large" in outcome.errors


def test_loopback_is_out_of_reach(jail):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        source = f"import socket\ns = socket.socket()\ns.settimeout(.5)\nprint(s.connect_ex(('127.0.0.1', {port})))"
        with socket.socket() as client:  # outside it is within reach
            assert client.connect_ex(("127.0.0.1", port)) == 0
        outcome = run_python(source, ProgramLimits(), jail=jail)
    assert outcome.output.strip().isdigit()
    assert outcome.output.strip() != b"0"


def test_nothing_can_be_written_outside_its_folder(jail, tmp_path):
    tmp_path.chmod(0o777)
    targets = [
        str(tmp_path / "evil"),
        "/tmp/evil",
        "/usr/evil",
        "/etc/evil",
        "/dev/evil",
        "/evil",
        "../evil",
        "/proc/evil",
    ]
    source = f"""
for path in {targets!r}:
    try:
        open(path, "w").write("x")
        print("wrote", path)
    except OSError:
        pass
open("mine", "w").write("own folder")
print(open("mine").read())
"""
    outcome = run_python(source, ProgramLimits(), jail=jail)
    assert outcome.output == b"own folder\n"
    assert list(tmp_path.iterdir()) == []


def test_nothing_can_be_read_outside_but_system_files(jail, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "secret").chmod(0o666)
    targets = [str(tmp_path / "secret"), "/etc/passwd", "/etc/shadow", "/etc/hostname", __file__]
    source = f"""
import os
for path in {targets!r}:
    try:
        print("read", path, open(path).read())
    except OSError:
        pass
print(os.environ)
for pid in os.listdir("/proc"):
    if pid.isdigit():
        for name in ("environ", "cmdline"):
            try:
                print(open(f"/proc/{{pid}}/{{name}}").read())
            except OSError:
                pass
"""
    outcome = run_python(source, ProgramLimits(), jail=jail)
    assert b"read " not in outcome.output
    assert b"hunter2" not in outcome.output
    assert outcome.returncode == 0


def test_no_capabilities_and_no_way_to_gain_any(jail):
    outcome = run_python("print(open('/proc/self/status').read())", ProgramLimits(), jail=jail)
    status = dict(
        line.split(":\t") for line in outcome.output.decode().splitlines() if ":\t" in line
    )
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {
        "0" * 16
    }
    assert status["NoNewPrivs"] == "1"


TESTS = {
    "tests": [{"call": "add(2, 3)", "output": "5"}, {"call": "add('a', 'b')", "output": "'ab'"}]
}


def test_code_is_scored_by_the_tests_it_passes(jail):
    programs = [
        "Here you are:\n```python\ndef add(a, b):\n    return a + b\n```\nEnjoy.",
        "def add(a, b):\n    return int(a) + int(b)",
        "def add(a, b):\n    while True: pass",
        "this is no program",
        "import sys\nprint('\\x02\"5\"'); sys.exit(0)",  # a forged verdict passes one test only if it guesses the value
        "import os\nos._exit(0)",
        "class Yes(str):\n    __eq__ = lambda *a: True\n    __repr__ = lambda s: Yes()\nadd = "
        "lambda a, b: Yes()",
    ]
    samples = [Sample("", program, "", facts=TESTS) for program in programs]
    scores = score_code(samples, LIMITS, jail=jail)
    assert scores[:4] == [1.0, 0.5, 0.0, 0.0]
    assert scores[4] <= 0.5
    assert scores[5:] == [0.0, 0.0]


def test_programs_that_read_and_print(jail):
    tests = {"tests": [{"input": "2 3\n", "output": "5\n"}, {"input": "1 1\n", "output": "2"}]}
    good = "a, b = map(int, input().split())\nprint(a + b)  "
    constant = "print(5)"
    assert score_code(
        [Sample("", p, "", facts=tests) for p in (good, constant)], LIMITS, jail=jail
    ) == [1.0, 0.5]


def test_without_tests_or_sandbox_a_program_is_unscorable(jail, monkeypatch):
    assert math.isnan(score_code([Sample("", "x = 1", "")], LIMITS, jail=jail)[0])
    for command, reason in (
        (["/bin/false"], "the jail ended at once"),
        (["/no/such/file"], "No such file"),
    ):
        monkeypatch.setattr(
            "vla.rewards.sandbox.jail._command", lambda *_, command=command: command
        )
        failures = {}
        samples = [Sample("", "add = sum", "", facts=TESTS)] * 2
        assert np.isnan(score_code(samples, LIMITS, jail=jail, failures=failures)).all()
        assert [(reason in told, count) for told, count in failures.items()] == [(True, 2)]


def test_code_is_never_run_unconfined(monkeypatch):
    import vla.rewards.sandbox.run_python as sandbox

    monkeypatch.setattr(sandbox, "available_jails", list)
    with pytest.raises(ValueError, match="code rewards need a sandbox.*install bubblewrap"):
        score_code([Sample("", "x = 1", "", facts=TESTS)], LIMITS)
    rewards = Rewards({"correct": 1.0})
    with pytest.raises(ValueError, match="code rewards need a sandbox"):
        rewards.check_verifier("code")
    rewards.close()


SWITCHES = {
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    "/proc/sys/kernel/unprivileged_userns_clone": ("0", "kernel.unprivileged_userns_clone=1"),
    "/proc/sys/user/max_user_namespaces": ("0", "user.max_user_namespaces=15000"),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_remedy_is_the_switch_that_forbids(monkeypatch, switch):
    value, remedy = SWITCHES[switch]
    monkeypatch.setattr(jails, "_read_switch", lambda path: value if path == switch else None)
    assert f"{remedy})" in jails.jail_remedies()
    monkeypatch.setattr(jails, "_read_switch", lambda path: None)
    assert "sysctl" not in jails.jail_remedies()


def test_the_last_block_is_the_program():
    assert extract_program("```python\na = 1\n```\nbetter:\n```\na = 2\n```") == "a = 2\n"
    assert extract_program("a = 3") == "a = 3"


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        (None, "must be a list of at least one"),
        ([], "must be a list of at least one"),
        ("f(1)", "must be a list of at least one"),
        ({"call": "f(1)", "output": "1"}, "must be a list of at least one"),
        (["f(1)"], "test 1 .* must be a mapping"),
        ([{}], "test 1 .* must have output and one of call, input"),
        ([{"call": "f(1)", "output": "1"}, {"call": "f(2)"}], "test 2 .* must have output"),
        (
            [{"call": "f(1)", "input": "1", "output": "1"}],
            "must have output and one of call, input",
        ),
        ([{"call": "f(1)", "output": None}], "must have output and one of call, input"),
        ([{"call": "f(1)", "output": "1", "weight": 2}], "and nothing else"),
        (
            [{"call": "f(1)", "output": 3}],
            "output must be a text; write the value as it is printed, e.g. '3'",
        ),
        ([{"input": 3, "output": "3"}], "input must be a text"),
        ([{"call": ["f(1)"], "output": "1"}], "call must be a text"),
        ([{"call": "f(1", "output": "1"}], "call is no Python expression: '.' was never closed"),
        ([{"call": "x = f(1)", "output": "1"}], "call is no Python expression"),
        ([{"call": "f(1)\0", "output": "1"}], "call is no Python expression"),
        ([{"call": "(" * 5000, "output": "1"}], "call is no Python expression"),
        ([{"input": "\ud800", "output": "1"}], "input has half of a surrogate pair"),
    ],
)
def test_tests_that_cannot_be_read_are_named_and_unscorable(tests, reason):
    with pytest.raises(ValueError, match=reason):
        read_tests(tests)
    assert math.isnan(score_code([Sample("", "x = 1", "", facts={"tests": tests})], LIMITS)[0])


def test_keys_without_a_value_are_absent():
    assert [
        test.call for test in read_tests(({"call": " f(1)", "input": None, "output": "1"},))
    ] == [" f(1)"]


def test_programs_that_are_no_text_score_0(jail):
    programs = [
        "add = '\ud800'",
        "x = 1\0",
        "(" * 5000,
        "\ufeffdef add(a, b): return a + b",
        "add = lambda a, b: 10**6000",
    ]
    samples = [Sample("", program, "", facts=TESTS) for program in programs]
    assert score_code(samples, ProgramLimits(), jail=jail) == [0, 0, 0, 1, 0]
