import math
import time
from pathlib import Path

import numpy as np
import pytest

from vla.rewards.compose import Rewards
from vla.rewards.sample import Sample
from vla.rewards.verifier_process import VerifierProcess
from vla.rewards.verifier_worker import find_verifier
from vla.rewards.verifiers import VERIFIERS

HERE = "bad_verifiers:"


@pytest.fixture(scope="module")
def process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        with VerifierProcess(timeout_seconds=1.0, memory_bytes=2**30) as process:
            yield process


def test_scores_come_back_in_order(process):
    samples = [Sample("", text, "64") for text in ("64", "it is 63", "= 64.")]
    assert process.score("last_number", samples) == [1, 0, 1]
    assert process.score("answer.last_number", samples) == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hangs", "no answer in 1 s"),
        ("sleeps_with_signals_blocked", "no answer in 1 s"),
        ("eats_memory", "out of memory"),
        ("raises", "ZeroDivisionError: division by zero"),
        ("leaves", "the verifier ended its process"),
        ("floods_and_hangs", "no answer in 1 s"),
        ("says_nonsense", "ValueError: could not convert string to float: 'good'"),
        ("wants_a_key", "KeyError: 'unit'"),
        ("says_infinity", "gave inf, a score is a number, and finite"),
        ("raises_what_cannot_be_told", "Untold"),
        ("reads_requests", "EOFError: EOF when reading a line"),
    ],
)
def test_a_bad_verifier_is_unscorable_and_harms_nobody(process, name, reason):
    reason = f"{HERE}{name}: {reason}"
    before = process.failures.get(reason, 0)
    samples = [Sample("", text, "1") for text in ("bad", "fine")]
    started = time.monotonic()
    scores = process.score(HERE + name, samples)
    assert time.monotonic() - started < 30
    assert math.isnan(scores[0])
    assert scores[1] == 1.0
    assert process.failures[reason] == before + 1


def is_running(pid):
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
        )  # a zombie waits to be collected
    except OSError:
        return False


def test_nothing_is_left_running(process, tmp_path):
    sample = Sample("", "bad", "1", facts={"file": str(tmp_path / "pid")})
    assert math.isnan(process.score(HERE + "starts_a_child_and_hangs", [sample])[0])
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not is_running(child):
            break
        time.sleep(0.05)
    assert not is_running(child)


def test_printing_is_not_answering(process):
    assert process.score(HERE + "prints", [Sample("", "x", "1")]) == [0.25]


def test_unknown_names_are_refused(process):
    with pytest.raises(
        ValueError, match="verifier 'lastnumber' is unknown: choose one of exact, contains"
    ):
        process.score("lastnumber", [Sample("", "", "")])
    with pytest.raises(ValueError, match="verifier 'no.such:thing' cannot be imported"):
        find_verifier("no.such:thing")
    with pytest.raises(ValueError, match="verifier 'math.pi' must be a function, this is 3.14"):
        find_verifier("math.pi")


def test_every_name_is_a_function():
    assert all(callable(find_verifier(name)) for name in VERIFIERS)


def test_libraries(process):
    pairs = [("1/2", "so it is $0.5$", 1.0), ("2x", "$x + x$", 1.0), ("4", "it is 5", 0.0)]
    patient = VerifierProcess(timeout_seconds=20)
    samples = [Sample("", completion, answer) for answer, completion, _ in pairs]
    assert patient.score("math_equal", samples) == [score for _, _, score in pairs]
    patient.close()


def test_a_weighted_sum_keeps_its_parts():
    weights = {"correct": 1.0, "think_format": 0.5, "finished": -0.25, "only_number": 0.0}
    rewards = Rewards(weights, VerifierProcess())
    tags = "<think>a</think><answer>4</answer>"
    samples = [
        Sample("", tags, "4", finished=False, facts={"verifier": "answer.last_number"}),
        Sample("", "5", "4", finished=True, facts={"verifier": "last_number"}),
        Sample("", "5", "four", finished=True, facts={"verifier": "last_number"}),
        Sample("", "Four", "four", finished=True),
    ]
    scores = rewards(samples)
    # 1 + .5 - 0, 0 + 0 - .25, unscorable, 1 + 0 - .25; only_number of "four" is NaN but weighs
    # nothing
    np.testing.assert_allclose(scores.total, [1.5, -0.25, np.nan, 0.75])
    np.testing.assert_allclose(scores.parts["correct"], [1, 0, np.nan, 1])
    np.testing.assert_allclose(scores.parts["finished"], [0, 1, 1, 1])
    assert np.isnan(scores.parts["only_number"][3])
    rewards.close()


def test_weights_are_checked():
    with pytest.raises(ValueError, match="rewards is empty"):
        Rewards({})
    with pytest.raises(ValueError, match="rewards.correct .nan. must be a finite weight"):
        Rewards({"correct": math.nan})


def test_a_verifier_that_always_hangs_costs_its_own_time_limit(process):
    started = time.monotonic()
    assert all(
        math.isnan(score)
        for score in process.score(HERE + "always_hangs", [Sample("", "x", "1")] * 2)
    )
    assert time.monotonic() - started < 40  # twice the limit of a second, and two new processes


def test_what_is_not_finite_is_unscorable_and_counted(process):
    scores = Rewards({HERE + "gives_infinity": 1.0}, process)(
        [Sample("", text, "1") for text in ("bad", "fine")]
    )
    assert math.isnan(scores.total[0])
    assert scores.total[1] == 1.0
    assert (
        process.failures[HERE + "gives_infinity: gave -inf, a score is a number, and finite"] == 1
    )
    assert np.isnan(
        Rewards({"finished": 1e39})([Sample("", "x", "1")]).total[0]
    )  # more than float32 holds


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gives_none", "gave None, a score is a number"),
        ("takes_two", "TypeError: takes_two.. missing 1 required"),
    ],
)
def test_a_verifier_that_has_never_worked_ends_the_run(process, name, reason):
    samples = [Sample(f"prompt {i % 4}", "x", "1") for i in range(20)]
    with pytest.raises(
        ValueError, match=f"{name} failed on all of its 16 samples, at last: {HERE}{name}: {reason}"
    ):
        process.score(HERE + name, samples)
    same = [Sample("one prompt", "x", "1")] * 20
    assert all(
        math.isnan(score) for score in process.score(HERE + "cannot_tell", [*samples, *same])
    )
