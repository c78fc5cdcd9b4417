import json
import re

import numpy as np
import pytest

from vla.evaluation.result import EvaluationResult, compare_results, success_result
from vla.text.text_report import (
    AnswerPair,
    rate_intervals,
    result_facts,
    training_charts,
    write_report,
)
from vla.training.metrics import read_metrics
from vla.training.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps([{"command": "python x.py a<b", "started": "now", "machine": "cpu"}])
    )
    records = [
        {
            "stage": "rl",
            "step": i,
            "return_mean": 0.1 * i,
            "success": 0.1 * i,
            "episodes": 20.0,
            "entropy": 1 / i,
            "open_families": 1.0,
            "approx_kl": 1e-9,
        }
        for i in (1, 2, 3)
    ]
    records += [{"stage": "reward model", "step": i, "loss": 1 / i} for i in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records)
    )
    return RunFolder(tmp_path)


def rate(successes: int, n: int) -> EvaluationResult:
    return success_result(range(n), [row < successes for row in range(n)], None)


RESULTS = {
    "before": rate(3, 10),
    "after": rate(8, 10),
    "mean_tokens": {"before": 13.521, "after": 11.0},
    "seconds": {"total": 10.0, "rl": 8.0},
    "peak_memory_bytes": 3 * 2**29,
}


def test_the_page_holds_all_there_is(folder):
    pairs = [AnswerPair("2 < 3?", "answer: yes", "<no>", "yes", False, True)]
    write_report(folder, "A run", RESULTS, pairs)
    page = (folder.path / "report.html").read_text()
    assert "python x.py a&lt;b" in page  # what a user or a model wrote is never markup
    assert "&lt;no&gt;" in page
    assert "80.0 % (8/10, 95 % Wilson interval" in page
    assert '<span class="yes">right</span> yes' in page
    assert 'src="' not in page  # nothing else is referred to: the page can be sent around
    assert "1.5 GiB" in page
    assert "Gained" not in page  # no comparison was made


def test_a_comparison_and_mean_rewards_are_told_first(folder):
    write_report(
        folder,
        "A run",
        {**RESULTS, "comparison": compare_results(rate(0, 10), rate(4, 10))},
        [],
    )
    # 4 gained, 0 lost of 10: +40 points, McNemar exact 2 / 2^4 = .125
    page = (folder.path / "report.html").read_text()
    assert "<p>Gained</p><b>+40.0</b><small>points; McNemar exact p = 0.12</small>" in page
    write_report(
        folder, "A run", {"gold after": EvaluationResult("score", (1, 2), (0.25, 0.75), None)}, []
    )
    page = (folder.path / "report.html").read_text()
    assert "<p>Gold reward after</p><b>0.500</b><small>0.250 to 0.750, n = 2</small>" in page


def test_only_charts_that_say_something_are_drawn(folder):
    records = read_metrics(folder.path)
    # the reward is success, one family is open all along, every update is on-policy: no charts of
    # those
    drawn = training_charts(records, RESULTS)
    titles = [re.search("<figcaption>([^<]*)<", one)[1] for one in drawn]
    assert titles == ["Success", "Entropy", "Loss: reward model"]
    assert "held-out, greedy, before and after: 0.8 at 3" in drawn[0]
    assert training_charts(records[:1], {}) == []


def test_rates_are_drawn_by_family_and_numbers_as_they_are_read():
    families = {"family sums": {"before": rate(1, 4), "after": rate(3, 4)}}
    drawn = [(row.name, row.group, row.rate) for row in rate_intervals({**RESULTS, **families})]
    assert drawn[:2] == [("all problems", "before", 0.3), ("all problems", "after", 0.8)]
    assert drawn[2:] == [("sums", "before", 0.25), ("sums", "after", 0.75)]
    told = result_facts(RESULTS)
    assert "<dt>mean tokens</dt><dd>13.52 before, 11 after</dd>" in told
    assert "<dt>peak memory</dt><dd>1.50 GiB</dd>" in told
    assert "total" not in told  # the time has a chart of its own
    assert "<dd>0.1235</dd>" in result_facts({"a": np.float64(0.123456)})
