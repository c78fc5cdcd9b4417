import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from vla.rewards.gold_rewards import brief, concise_kind, find_gold_reward
from vla.rewards.judges import (
    BothOrders,
    GoldJudge,
    Judge,
    ModelJudge,
    Rubric,
    ScriptedJudge,
    UrlJudge,
    rank_by_judge,
)

RUBRIC = Rubric(["Be kind.", "Be brief."], [("hi", "hello", "go away", "A")])


def test_gold_by_hand():
    # 8 words, 1 kind word, all 7 pairs distinct: 1/3 + (1 - 8/16) + 1
    assert concise_kind("", "The river is calm and runs to sea.") == pytest.approx(1 / 3 + 0.5 + 1)
    # 16 words, 3 kind words of 4 counted, pairs all distinct: 1 + 1 + 1
    text = "what a lovely warm happy good day for us to see how far this road will lead"
    assert concise_kind("", " ".join(text.split()[:16])) == pytest.approx(3)
    # "good good good": tone 1/3, length 3/16, one distinct pair of two
    assert concise_kind("", "good good good") == pytest.approx(1 / 3 + 3 / 16 + 0.5)
    assert concise_kind("", "") == 0
    assert brief("", "one two three") == 0.25
    assert find_gold_reward("brief") is brief
    assert find_gold_reward("math:hypot") is math.hypot
    with pytest.raises(ValueError, match="gold 'kindness' is unknown: choose concise_kind, brief"):
        find_gold_reward("kindness")


def test_the_gold_judge_and_its_noise():
    judge = GoldJudge(brief)
    assert judge.prefer("p", "a", "a b c") == 1
    assert judge.prefer("p", "a b c", "a") == 0
    assert judge.prefer("p", "a", "b") == 0.5
    noisy = GoldJudge(brief, noise=0.2, seed=1)
    labels = [noisy.prefer(f"p{i}", "a", "a b c") for i in range(2000)]
    assert abs(sum(labels) / 2000 - 0.8) < 5 * (0.2 * 0.8 / 2000) ** 0.5
    # a flipped label is flipped in the other order too, so it is a wrong judgement and not a lean
    assert all(noisy.prefer(f"p{i}", "a b c", "a") == 1 - labels[i] for i in range(100))


def test_position_bias_cancels():
    biased = ScriptedJudge(
        lambda prompt, first, second: 0.3 + 0.4 * (len(first) < len(second)) + 0.2
    )
    assert biased.prefer("", "aa", "b") == 0.5  # the lean hides that b is better
    fair = BothOrders(biased)
    assert fair.prefer("", "b", "aa") == pytest.approx(0.7)
    assert fair.prefer("", "aa", "b") == pytest.approx(0.3)
    always_first = BothOrders(ScriptedJudge(lambda *_: 1.0))
    assert always_first.prefer("", "x", "y") == 0.5
    assert isinstance(fair, Judge)


def test_a_model_judge_sees_rubric_and_case():
    asked = []

    def letters(questions):
        asked.extend(questions)
        return [(math.log(0.6), math.log(0.2)) for _ in questions]

    assert ModelJudge(RUBRIC, letters).prefer("Why?", "Because.", "No.") == pytest.approx(
        0.75
    )  # .6 / (.6 + .2)
    assert asked[0].startswith(
        "Which answer is better? Judge by these principles:\n- Be kind.\n- Be brief.\n"
    )
    assert "Answer B: go away\nThe better answer is A\n\n" in asked[0]
    assert asked[0].endswith(
        "Question: Why?\nAnswer A: Because.\nAnswer B: No.\nThe better answer is "
    )

    assert BothOrders(ModelJudge(RUBRIC, letters)).prefer(
        "Why?", "Because.", "No."
    ) == pytest.approx(0.5)
    assert "Answer A: No.\nAnswer B: Because.\n" in asked[-1]


class Server(BaseHTTPRequestHandler):
    replies: ClassVar[list[str]] = []
    seen: ClassVar[list[dict]] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        reply = self.replies.pop(0)
        self.send_response(200 if reply != "broken" else 500)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": reply}}]}).encode())

    def log_message(self, *_):
        pass


def test_a_server_as_judge(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        judge = UrlJudge(
            f"http://127.0.0.1:{server.server_port}/v1/", "judge-1", RUBRIC, "SOME_KEY", 20
        )
        Server.replies = ["A", "The better one is B.", "A or B", "", "broken"]
        judged = [judge.prefer("Why?", "x", "y") for _ in range(5)]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert judged[:2] == [1.0, 0.0]
    assert all(math.isnan(value) for value in judged[2:])
    assert Server.seen[0]["path"] == "/v1/chat/completions"
    assert Server.seen[0]["key"] == "Bearer secret"
    assert Server.seen[0]["model"] == "judge-1"
    assert math.isnan(judge.prefer("Why?", "x", "y"))  # nobody answers any more


def test_ranking_by_judgements():
    shorter = ScriptedJudge(lambda prompt, first, second: float(len(first) < len(second)))
    # "a" beats both, "bb" one of two, "ccc" none
    assert rank_by_judge(shorter, "", ["bb", "a", "ccc"]) == [0.5, 1.0, 0.0]
    assert all(
        math.isnan(score)
        for score in rank_by_judge(ScriptedJudge(lambda *_: math.nan), "", ["a", "b"])
    )
