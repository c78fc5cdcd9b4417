import json

import numpy as np
import pytest

from vla.evaluate.success import SuccessRate
from vla.text.report import Pair, draw_curves, numbers_table, show, write_report
from vla.train.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps([{"command": "python x.py a<b", "started": "now", "machine": "cpu"}]))
    records = [
        {"stage": "rl", "step": i, "return_mean": 0.1 * i, "success": 0.1 * i, "episodes": 20.0, "entropy": 1 / i,
         "open_families": 1.0, "approx_kl": 1e-9}
        for i in (1, 2, 3)
    ]  # fmt: skip
    records += [{"stage": "reward model", "step": i, "loss": 1 / i} for i in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return RunFolder(tmp_path)


RESULTS = {
    "before": SuccessRate(3, 10, None),
    "after": SuccessRate(8, 10, None),
    "mean_tokens": {"before": 13.521, "after": 11.0},
    "seconds": {"total": 10.0, "rl": 8.0},
    "peak_memory_bytes": 3 * 2**29,
}


def test_the_page_holds_all_there_is(folder):
    pairs = [Pair("2 < 3?", "answer: yes", "<no>", "yes", False, True)]
    write_report(folder, "A run", RESULTS, pairs)
    page = (folder.path / "report.html").read_text()
    assert "python x.py a&lt;b" in page  # what a user or a model wrote is never markup
    assert "&lt;no&gt;" in page
    assert "80.0 % (8/10, 95 % Wilson interval" in page
    assert page.count('src="data:image/png;base64,') == 4  # pictures travel with the page: nothing else is referred to
    assert 'src="plots' not in page


def test_only_pictures_that_say_something_are_drawn(folder):
    from vla.train.metrics import read_metrics

    records = read_metrics(folder.path)
    # the reward is success, one family is open all along, every update is on-policy: no pictures of those
    drawn = draw_curves(folder, records, RESULTS)
    assert drawn == ["success", "entropy", "loss_reward_model", "time"]
    assert all((folder.plots / f"{name}.png").stat().st_size > 1000 for name in drawn)
    assert draw_curves(folder, records[:1], {}) == []


def test_numbers_as_they_are_read():
    assert show(RESULTS["mean_tokens"]) == "13.52 before, 11 after"
    assert show(np.float64(0.123456)) == "0.1235"
    assert show({"a": 1, "b": {}}) == "a: 1<br>b: none"
    table = numbers_table(RESULTS)
    assert "<th>peak memory</th><td>1.50 GiB</td>" in table
    assert "total" not in table  # the time is a picture
