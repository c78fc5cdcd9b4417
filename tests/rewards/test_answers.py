"""Which verifier an answer gets by what it is, and what that verifier takes for right."""

import math

import pytest

from vla.rewards.code import extract_program
from vla.rewards.sample import Sample
from vla.rewards.verifier_worker import find_verifier
from vla.rewards.verifiers.answer_matching import last_number
from vla.rewards.verifiers.answer_types import extract_final_answer, select_verifier
from vla.rewards.verifiers.external_verifiers import math_equal
from vla.rewards.verifiers.format_rewards import json_value
from vla.rewards.verifiers.numbers import find_answer_number, parse_number

CASES = {
    "last_number": {
        "1/2": (
            ["1/2", "0.5", "so \\frac{1}{2}", "$\\frac12$", ".5", "2/4", "It is one half: 1/2."],
            ["2", "3/2", "1", "x/2"],
        ),
        "\\frac{14}{3}": (
            ["14/3", "$\\frac{14}{3}$", "\\dfrac{14}{3}", "4 2/3"],
            ["3", "\\frac{7}{3}", "14"],
        ),
        ".25": (["0.25", "1/4", ".25"], ["25"]),
        "6.022e23": (["6.022e23", "6.022 × 10^23", "6.022 \\times 10^{23}"], ["23", "6.022"]),
        "4 + 5 = 9. #### 1,009": (["1009", "1,009", "1 009"], ["9"]),
        "1,000": (["1000", "1 000", "1'000", "1\u2009000", "1,000"], ["1", "0", "000"]),
        "-5": (
            ["−5", "-5", "= −5", "x = - 5", "\\boxed{- 5}", "The answer is - 5."],
            ["5", "10 - 5", "so:\n- 5"],
        ),
        "9": (["9"], ["9^{9^{9^{9}}}", "$9^{9^{9}}$", "9^9^9"]),
        "72": (
            ["72", "72 (see step 3)", "\\boxed{71} so \\boxed{72}", "72.0"],
            ["\\boxed{72} no \\boxed{71}", "3"],
        ),
        "10^5": (["100000", "10^5"], ["5", "10"]),
        "1 1/2": (["3/2", "1.5", "1 1/2"], ["1/2", "2"]),
    },
    "math_equal": {
        "x^2 + 1": (
            [
                "x^2+1",
                "I get x^2 + 1.",
                "$x^2+1$",
                "1 + x^2",
                "\\boxed{x^2 + 1}",
                "The answer is x^2+1",
                "f'(x) = x^2 + 1",
                "x² + 1",
            ],
            ["1", "x^3 + 1", "$x^3+1$", "x^2", "2"],
        ),
        "\\sqrt{2}": (
            ["sqrt(2)", "$\\sqrt{2}$", "√2", "\\boxed{\\sqrt 2}", "so x = \\sqrt{2}"],
            ["2", "\\sqrt{3}", "1.41"],
        ),
        "2\\pi": (["2π", "$2\\pi$", "2 pi", "It is 2\\pi."], ["2", "\\pi"]),
        "(1, 2)": (["(1,2)", "$(1, 2)$", "so (1, 2)"], ["(2, 1)", "2", "(1,3)"]),
        "x = 3": (["x=3", "$x = 3$", "3"], ["x=4", "x"]),
        "2x": (["2x", "$2x$", "x + x"], ["2", "3x", "x"]),
        "sin(x)": (["$\\sin x$", "sin(x)", "the result is sin(x)"], ["cos(x)", "x"]),
        "x > 2": (["x>2", "$x > 2$"], ["x<2", "2"]),
        "\\{1, 2\\}": (["$\\{2,1\\}$", "\\{1,2\\}"], ["\\{1,3\\}"]),
        "x*(y+1)": (["x(y+1)", "$xy+x$"], ["xy", "y+1"]),
        "[0, 1)": (["[0,1)", "$[0,1)$"], ["[0,1]", "(0,1)"]),
        "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}": (
            ["$\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}$"],
            ["$\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}$"],
        ),
    },
    "exact": {
        "x": (["x"], ["y", "X Y"]),
        "2nd": (["2nd"], ["2"]),
        "a": (["a"], ["b"]),
        "Chapter 7: Vectors": (["Chapter 7: Vectors", "chapter 7: vectors"], ["It costs 7", "7"]),
        "3-2": (["3-2"], ["1", "2"]),
        "Paris": (
            [
                "Paris",
                "paris",
                "**Paris**",
                "\\boxed{Paris}",
                "The answer is Paris.",
                "$\\boxed{\\text{Paris}}$",
            ],
            ["London", "\\boxed{London} and not Paris", "Paris or London"],
        ),
        "\\text{no solution}": (
            ["no solution", "\\boxed{\\text{no solution}}"],
            ["solution", "\\boxed{0}"],
        ),
        "3:45 pm": (["3:45 pm", "The answer is 3:45 PM."], ["45", "3"]),
        "Windows 95": (["Windows 95"], ["95"]),
        "H2O": (["H2O"], ["2"]),
    },
    "date": {
        "12 May 1999": (
            [
                "12 May 1999",
                "on 12 May 1999.",
                "May 12, 1999",
                "1999-05-12",
                "12th of May 1999",
                "It was founded on May 12th, 1999",
            ],
            ["1 January 1999", "1999", "12 May 1998", "13 May 1999"],
        ),
        "1999-05-12": (["12 May 1999"], ["1999-12-05", "1999"]),
        "12/05/1999": (["12/05/1999", "on 12/5/1999"], ["05/12/1999", "1999"]),
        "May 1999": (["May 1999", "in May 1999"], ["1999", "June 1999"]),
    },
    "choice": {
        "(b)": (["(b)", "B", "so it is (b)"], ["(a)", "b is a letter"]),
        "Option C": (["C", "Option C"], ["D"]),
        "B": (
            [
                "B",
                "(B)",
                "B.",
                "\\text{(B)}",
                "The answer is (B).",
                "\\boxed{B}",
                "\\boxed{\\text{(B)}}",
                "B) Paris",
                "I think B",
                "Option B",
                "**B**",
                "A is wrong, so the answer is B",
            ],
            ["A", "C", "(A)", "banana", "The answer is A", "A. B is wrong", "Because"],
        ),
        "(B)": (["B", "(B)"], ["(C)"]),
        "\\text{(B)}": (["B"], ["D"]),
        "A": (["A", "The answer is A.", "(A)"], ["A dog is B", "B"]),
    },
    "quantity": {
        "5 km": (
            ["5 km", "It is 5 km.", "5km", "5 kilometers", "$5\\text{ km}$", "5\\,\\mathrm{km}"],
            ["5 m", "5 miles", "3 km", "7 km", "50 km"],
        ),
        "50%": (
            ["50%", "50 %", "50 percent", "0.5", "50\\%", "\\boxed{50\\%}"],
            ["5%", "5", "20%"],
        ),
        "$18": (["$18", "18 dollars", "$18.00", "It costs $18.", "\\$18"], ["$1.8", "$81"]),
        "3 apples": (["3 apples", "so 3 apples are left"], ["3 pears", "4 apples"]),
        "60 km/h": (["60 km/h", "60 km per hour", "60 kilometers per hour"], ["60 km", "60 m/s"]),
        "20°C": (
            ["20 °C", "20°C", "20 degrees Celsius"],
            ["20 K", "20°F", "20 degrees Fahrenheit"],
        ),
        "15 cm^2": (
            ["15 cm²", "15 square centimeters", "15 centimeters^2"],
            ["15 cm", "15 m^2", "15 cubic centimeters"],
        ),
        "$-50": (["-$50", "$-50", "-50 dollars"], ["$50", "50 dollars"]),
        "5 m": (["5 m", "5 meters"], ["5 km", "5 min"]),
    },
}
ALL = [
    (verifier, answer, *texts)
    for verifier, answers in CASES.items()
    for answer, texts in answers.items()
]


@pytest.mark.parametrize(("verifier", "answer", "right", "wrong"), ALL)
def test_a_verifier_is_chosen_by_what_the_answer_is(verifier, answer, right, wrong):
    text = extract_final_answer(answer)
    assert select_verifier(text) == verifier
    verify = find_verifier(verifier)
    assert [said for said in right if verify(Sample("", said, text)) != 1] == []
    assert [said for said in wrong if verify(Sample("", said, text)) != 0] == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1\u202f000\u202f000", 1e6),
        ("1,00,000", 1e5),
        ("1{,}000", 1000),
        ("1\\,000", 1000),
        ("10,000.5", 10000.5),
        ("\u22125", -5),
        ("\u20135", -5),
        ("(12)-7", 7),
        ("3 - 1/2", 0.5),
        ("2\u00bd", 2.5),
        ("1 1/2", 1.5),
        ("-\\frac12", -0.5),
        ("\\dfrac{-1}{2}", -0.5),
        ("2^{10}", 1024),
        ("3^-2", 1 / 9),
        ("x^2 = 16", 16),
        ("12 m\u00b2", 12),
        ("72 [1]", 72),
        ("[72]", 72),
        ("72, see step 3", 72),
        ("Answer: 5 because of 3", 5),
        ("x/2", None),
        ("64/0", None),
        ("1.2.3", None),
        ("192.168.1.1", None),
        ("12/05/1999", None),
        ("9^9^9", None),
        ("2^{100000000}", None),
        ("1e999999999", None),
        ("9" * 5000, None),
    ],
)
def test_numbers_as_they_are_written(text, number):
    assert (
        find_answer_number(text) == pytest.approx(number)
        if number is not None
        else find_answer_number(text) is None
    )


def test_a_number_and_nothing_else():
    assert parse_number("$\\frac{1}{4}$") == 0.25
    assert [
        parse_number(text) for text in ("x^2 + 1", "5 km", "1, 2", "12 May 1999", "(3)", "")
    ] == [None] * 6


def test_what_is_too_large_equals_nothing_and_costs_nothing():
    for tower in (
        "9^{9^{9^{9}}}",
        "$9^{9^{9^{9}}}$",
        "\\boxed{9^{9^9}}",
        "2^{10^{8}}",
        "$2^{100000000}$",
        "99999!",
    ):
        assert last_number(Sample("", tower, "9")) == 0
        assert math_equal(Sample("", tower, "9")) == 0
    assert math.isnan(math_equal(Sample("", "9", "9^{9^{9}} + x")))


CODE = "def f(x):\n    return x + 1\n"


@pytest.mark.parametrize(
    "text",
    [
        *[
            f"Sure:\n{fence}\n{CODE}```\n"
            for fence in ("```", "```python", "```python3", "```Python", "```py3", "```PY")
        ],
        *[
            f"{fence}\n{CODE}```"
            for fence in ("``` python", "```{.python}", '```python title="f.py"', "```python3.12")
        ],
        f"~~~python\n{CODE}~~~\nThat is it.",
        f"````python\n{CODE}````",
        f"Here it is: ```python\n{CODE}```",
        f"```python\n{CODE}",
        f"```python\n{CODE}```".replace("\n", "\r\n"),
        "1. First\n   ```python\n   def f(x):\n       return x + 1\n   ```",
        f"```python\n{CODE}```\nIt prints\n```\n5\n```\nand\n```json\n{{}}\n```",
        f"```python\nf = None\n```\nbetter\n```python\n{CODE}```",
        f"```json\n{{}}\n```\n```\n{CODE}```",
        CODE,
    ],
)
def test_fences_of_every_kind(text):
    assert extract_program(text).rstrip() == CODE.rstrip()


def test_json_in_fences_of_every_kind():
    facts = {"schema": {"type": "array"}}
    for text in (
        "[3]",
        "```json\n[3]\n```",
        "```JSON\r\n[3]\r\n```",
        "~~~json\n[3]\n~~~",
        "```\n[3]",
        "```json5\n[3]```",
    ):
        assert json_value(Sample("", text, "", facts=facts)) == 1, text
    assert json_value(Sample("", "Sure!\n```json\n[3]\n```", "", facts=facts)) == 0


@pytest.mark.parametrize(
    "piece",
    [
        "1/1,000x~",
        "9",
        "1,000",
        "\\frac{1}",
        "\\boxed{",
        "$",
        "`",
        "(a",
        "x+",
        "12 May ",
        "A ",
        "^{",
        "answer is ",
        "[1]",
        "5 km ",
    ],
)
def test_no_text_takes_long_to_read(piece):
    text = piece * (6000 // len(piece)) + "~"
    for answer in ("1", "B", "12 May 1999", "5 km", "x + 1"):
        find_verifier(select_verifier(answer))(Sample("", text, answer))
    assert select_verifier(text) in ("exact", "last_number", "math_equal")
    assert extract_program(text)
