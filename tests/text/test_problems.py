import json

import pytest

from vla.rewards.verifier_process import VerifierProcess
from vla.rewards.verifiers.external_verifiers import reasoning_gym_score
from vla.text.calculator import calculate, evaluate_calls
from vla.text.hash_split import is_held_out, split_problems
from vla.text.problem_families import make_family
from vla.text.problem_sets import make_problem_sets

FAMILIES = [
    *("add1", "add2", "add3", "sub1", "sub2", "mul1", "mul2"),
    *("contains", "json", "sort3", "tool_call"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_problems_are_different_repeatable_and_split_without_overlap(name):
    problems = make_family(name, 500)
    assert problems == make_family(name, 500)
    questions = [problem.question for problem in problems]
    assert len(set(questions)) == len(questions)
    train, held_out = split_problems(problems, 0.25)
    assert {p.question for p in train}.isdisjoint(p.question for p in held_out)
    assert len(train) + len(held_out) == len(problems)
    # asking for fewer problems moves none to the other side
    fewer = make_family(name, 40)
    assert all(is_held_out(p.question, 0.25) == (p in held_out) for p in fewer)


@pytest.fixture(scope="module")
def process():
    with VerifierProcess(timeout_seconds=20) as process:
        yield process


@pytest.mark.parametrize("name", FAMILIES)
def test_the_right_answer_is_right_and_another_is_not(name, process):
    for problem in make_family(name, 5):
        right, wrong = problem.answer, "123456789"
        if name == "contains":
            right, wrong = f"I saw the {problem.answer}.", "I saw nothing."
        samples = [problem.sample(text, True, 5) for text in (right, wrong)]
        assert process.score(problem.verifier, samples) == [1, 0]


def test_arithmetic_by_hand():
    problems = {p.question: p.answer for p in make_family("add2", 2000)}
    assert len(problems) == 40 * 40
    assert problems["What is 23 + 41? Answer with just the number."] == "64"
    assert all(int(answer) < 100 for answer in problems.values())
    differences = {p.question: p.answer for p in make_family("sub1", 100)}
    assert len(differences) == 45
    assert differences["What is 9 - 2? Answer with just the number."] == "7"
    assert len(make_family("mul1", 100)) == 64


def test_reasoning_gym_families_are_verified_by_their_own_score():
    pytest.importorskip("reasoning_gym")
    problems = make_family("gym.chain_sum", 10)
    assert len(problems) == 10
    right = [problem.sample(f"The answer is {problem.answer}", True, 5) for problem in problems]
    wrong = [problem.sample("no", True, 5) for problem in problems]
    assert [reasoning_gym_score(sample) for sample in right] == [1.0] * 10
    assert max(reasoning_gym_score(sample) for sample in wrong) < 0.5


def test_unknown_families_are_named():
    with pytest.raises(ValueError, match="family 'add9' is unknown: choose add1 to add4"):
        make_family("add9", 10)
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match="no family 'chain_sums'; did you mean chain_sum"):
        make_family("gym.chain_sums", 10)


def test_reasoning_gym_is_optional(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(
        ValueError,
        match="family 'gym.chain_sum' needs reasoning-gym: install the optional extra `reasoning`",
    ):
        make_family("gym.chain_sum", 10)


def test_a_split_that_leaves_nothing_is_refused():
    with pytest.raises(
        ValueError, match="holdout_fraction .0.0. leaves 64 training and 0 evaluation problems"
    ):
        split_problems(make_family("mul1", 100), 0.0)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12 * (3 + 4)", "84"),
        ("1/3", "0.333333"),
        ("-7 - -2", "-5"),
        ("2 ** 99", "error"),
        ("__import__('os')", "error"),
        ("1/0", "error"),
        ("9" * 99 + "*9", "error"),
        ("(" * 99, "error"),
        ("True + 1", "error"),
        ("1e308 * 10", "error"),
        ("x", "error"),
        ("", "error"),
    ],
)
def test_the_calculator(expression, value):
    assert calculate(expression) == value
    assert evaluate_calls(f"so <calc>{expression}</calc>") == value


def test_text_without_a_call_calls_nothing():
    assert evaluate_calls("12 * 4 = 48") is None


def test_code_is_right_when_its_tests_pass():
    from vla.rewards.code import score_code
    from vla.rewards.sandbox.jail import available_jails
    from vla.rewards.sandbox.run_python import ProgramLimits

    if not available_jails():
        pytest.skip("no sandbox here")
    problem = next(p for p in make_family("code", 100) if "x - 5." in p.question)
    # 0 - 5 = -5, 1 - 5 = -4, 7 - 5 = 2, -12 - 5 = -17; abs(x - 5) is right on the third only
    assert [test["output"] for test in problem.facts["tests"]] == ["-5", "-4", "2", "-17"]
    texts = [f"```python\n{problem.answer}\n```", "def f(x): return abs(x - 5)", "x - 5"]
    assert score_code([problem.sample(text, True, 9) for text in texts], ProgramLimits()) == [
        1.0,
        0.25,
        0.0,
    ]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_problems_from_a_file(tmp_path, process):
    file = write(
        tmp_path / "mine.jsonl",
        {"question": "Six times seven?", "answer": "6 * 7 = 42 #### 42"},  # as GSM8K writes it
        {"prompt": "Half of one?", "answer": 0.5, "verifier": "math_equal"},
        {"prompt": "Capital of France?", "answer": "Paris"},
        {"prompt": "A list of one.", "schema": {"type": "array", "maxItems": 1, "minItems": 1}},
        {"prompt": "Add.", "tests": [{"call": "add(1, 2)", "output": "3"}]},
        {"prompt": "Say hello.", "answer": "hello there", "references": ["hello there"]},
    )
    problems = {problem.question: problem for problem in make_family(file, 100)}
    verifiers = [problems[question].verifier for question in sorted(problems)]
    assert verifiers == ["json_value", "code", "exact", "math_equal", "bleu", "last_number"]
    assert {problem.family for problem in problems.values()} == {file}
    right = {
        "Six times seven?": "It is 42.",
        "Half of one?": "$\\frac{1}{2}$",
        "A list of one.": "[3]",
    }
    for question, text in right.items():
        assert process.score(
            problems[question].verifier, [problems[question].sample(text, True, 3)]
        ) == [1.0]
    assert len(make_family(file, 2)) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "4"}, "line 2: has no text in the column prompt"),
        ({"prompt": "What?"}, "line 2: nothing says which completion is right"),
        ({"prompt": "What?", "answer": ["4"]}, "line 2: answer .* must be a text or a number"),
        ({"prompt": "What?", "answer": "4", "verifier": 3}, "line 2: verifier .3. must be a name"),
    ],
)
def test_a_bad_problem_is_named_by_file_and_line(tmp_path, row, message):
    file = write(tmp_path / "mine.jsonl", {"prompt": "2 + 2?", "answer": "4"}, row)
    with pytest.raises(ValueError, match=f"mine.jsonl, {message}"):
        make_family(file, 10)


def test_validation_and_evaluation_share_no_prompt_whatever_family_or_system_message_it_has(
    tmp_path,
):
    def asked(i, system):
        return [{"role": "system", "content": system}, {"role": "user", "content": f"{i} + 1?"}]

    plain = write(
        tmp_path / "a.jsonl", *({"prompt": f"{i} + 1?", "answer": str(i + 1)} for i in range(60))
    )
    systems = [
        {"prompt": asked(i, s), "answer": str(i + 1)}
        for i in range(60)
        for s in ("Be brief.", "Be kind.")
    ]
    again = write(
        tmp_path / "b.jsonl",
        *systems,
        *({"prompt": f"{i} + 1?", "answer": str(i + 1)} for i in range(60)),
    )
    sets = make_problem_sets((plain, again), None, 0.3, 9, 1000)
    sides = [
        {problem.key for problem in side} for side in (sets.train, sets.validation, sets.evaluation)
    ]
    assert [a & b for a in sides for b in sides if a is not b] == [set()] * 6
    questions = [problem.question for problem in (*sets.validation, *sets.evaluation)]
    assert len(set(questions)) == len(questions)
    assert len(sets.validation) == 9
