"""Answers as models write them, beside references: the same ones, and those that only look alike (docs/grading.md)."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgd_ray.grading.answers import gold_of
from cgd_ray.grading.grade import equivalent, grade
from cgd_ray.grading.normal import plain

SAME = [
    ("12 m", "\\boxed{12 meters}"),
    ("3.5", "It takes 3.5 hours."),
    ("1.6e-19", "\\boxed{1.6\\times10^{-19}\\,\\mathrm{C}}"),
    ("3e8", "\\boxed{3 \\times 10^8 \\text{ m/s}}"),
    ("2.5e-3", "0.0025"),
    ("6.626e-34", "The answer is $6.626\\times 10^{-34}$ J s."),
    ("7 (apples)", "The answer is 7 apples."),
    ("15 (dollars)", "$15"),
    ("forty-two", "\\boxed{42}"),
    ("42", "The answer is forty-two."),
    ("105", "There are one hundred and five birds."),
    ("3000", "The answer is three thousand."),
    ("0.5", "The answer is one half."),
    ("2/3", "\\boxed{\\text{two thirds}}"),
    ("12", "### Final Answer\n\n12"),
    ("12", "So the total cost is 4 + 8 = 12. #### 12"),
    ("12", "Therefore she pays $12 in total. #### 12\n"),
    ("12", "**Final Answer**\n\n12 dollars"),
    ("12", "## Step 1: add\n4+8=12\n## Step 2: done\nThe answer is 12"),
    ("7", "\\boxed 7"),
    ("7", "\\fbox{7}"),
    ("x^2", "\\boxed{\\text{x}^2}"),
    ("10", "\\boxed{\\text{ten \\text{apples}}}"),
    ("8", "The answer is 8, not 9."),
    ("8", "It's not 9, but 8."),
    ("8", "The answer isn't 9; it's 8."),
    ("B", "The correct option is (B) 14 km."),
    ("C", "\\boxed{C. 3/4}"),
    ("A", "Answer: A) Paris"),
    ("D", "The answer is D: none of the above."),
    ("B", "The answer is B"),
    ("5", "The answer is: **5**. I hope this helps!"),
    ("5", "Thus x equals 5."),
    ("-3", "x = \u22123"),
    ("-3", "The temperature was \u20133°C."),
    ("60", "The angle is 60°."),
    ("60", "\\angle ABC = \\boxed{60^{\\circ}}"),
    ("0.1", "\\boxed{10\\%}"),
    ("10%", "10 percent"),
    ("1/3", "\\boxed{0.3333333}"),
    ("100", "\\boxed{10^2}"),
    ("100", "\\boxed{1 \\times 10^2}"),
    ("1000000", "\\boxed{10^6}"),
    ("2,3", "x=2, x=3"),
    ("2, 3", "\\boxed{x=2 \\text{ and } x=3}"),
    ("(1,2)", "\\boxed{(x,y)=(1,2)}"),
    ("12\\pi", "\\boxed{12\\pi \\text{ cm}^2}"),
    ("2\\sqrt{3}", "\\boxed{2\\sqrt{3} \\text{ units}}"),
    ("\\frac{3}{4}", "3/4 of the cake is left"),
    ("9:15", "The train leaves at 9:15 AM."),
    ("9:15 AM", "\\boxed{9:15\\text{ a.m.}}"),
    ("18", "So Janet makes 18 dollars every day at the farmers' market."),
    ("5", "In conclusion, each child receives five apples."),
    ("x+1", "The answer is $x + 1$."),
    ("2x+3", "Answer: 2x + 3"),
    ("y=2x", "\\boxed{y = 2x}"),
    ("\\text{odd}", "The number is \\boxed{\\text{odd}}"),
    ("Paris", "The answer is Paris."),
    ("no solution", "\\boxed{\\text{No solution}}"),
    ("3", "Answer: 3\n\nExplanation: 1 + 2 = 3"),
    ("3", "The answer is 3.\n```\n"),
    ("3", "\\[\n3\n\\]"),
    ("3", "The final answer is\n\n\\[ 3 \\]"),
    ("24", "\\boxed{24 \\mathrm{~cm}}"),
    ("24", "$\\boxed{24\\;\\text{cm}}$"),
    ("4", "\\boxed{4.}"),
    ("1,000", "1000"),
    ("1000", "1 000"),
    ("10000", "\\boxed{10{,}000}"),
    ("2^{31}-1", "\\boxed{2147483647}"),
    ("120", "\\boxed{5!}"),
    ("\\frac{1}{2}", "\\boxed{\\dfrac{1}{2}}"),
    ("0.75", "\\boxed{\\cfrac{3}{4}}"),
    ("1\\frac{1}{2}", "\\boxed{1 \\frac{1}{2}}"),
    ("$1.50", "\\boxed{1.5}"),
    ("18", "Total: 18"),
    ("18", "= 18 dollars"),
    ("5", "So she has 5 apples left. Let me know if you need any more help!"),
    ("5", "The answer is 5. Thank you!"),
    ("72", "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.\n#### 72"),
]

OTHER = [
    ("12", "\\boxed{12x}"),
    ("12", "\\boxed{12\\theta}"),
    ("3", "\\boxed{3\\sqrt{2}}"),
    ("3", "3√2"),
    ("5", "\\boxed{\\text{more than }5}"),
    ("5", "at most 5"),
    ("5", "The answer is no more than 5."),
    ("5", "fewer than 5 apples"),
    ("5", "\\boxed{5\\text{ to }6}"),
    ("5", "5-6"),
    ("5", "between 4 and 5"),
    ("5", "x ≥ 5"),
    ("5", "\\boxed{x\\geq5}"),
    ("5", "\\boxed{5n}"),
    ("5", "\\boxed{\\pm 5}"),
    ("5", "The answer is \u22125"),
    ("5", "minus five"),
    ("7", "The answer is not 7."),
    ("7", "It isn't 7."),
    ("3e-6", "3e-7"),
    ("6.6e-34", "\\boxed{6.6e-35}"),
    ("1e-10", "0"),
    ("\\frac{1}{50!}", "\\frac{1}{51!}"),
    ("2^{-60}", "2^{-61}"),
    ("10^{-12}", "\\boxed{10^{-13}}"),
    ("2 km", "\\boxed{2 m}"),
    ("2", "\\boxed{2 dozen}"),
    ("5", "\\boxed{5^2}"),
    ("5", "5 cubed"),
    ("8", "\\boxed{8\\text{ halves}}"),
    ("9", "\\boxed{\\ln 9}"),
    ("30", "\\boxed{\\cos 30}"),
    ("45", "tan 45"),
    ("3", "The answer is x + y = 3."),
    ("0", "x^2 - 1 = 0"),
    ("3", "The answer is 3 or 4."),
    ("2", "\\boxed{2, 3}"),
    ("A", "\\boxed{B}"),
    ("A", "(B) A"),
    ("B", "Answer: C. B"),
    ("3:30", "\\boxed{4:30}"),
    ("3:30 AM", "3:30 PM"),
    ("east", "west"),
    ("20", "twenty-five"),
    ("25", "twenty"),
    ("3", "the answer is three quarters"),
    ("2", "\\boxed{\\frac{2}{3}}"),
    ("100", "100!"),
    ("1.5", "\\boxed{1,5}"),
    ("18", "\\boxed{81}"),
    ("6", "She has 6 apples and 3 pears."),
    ("x+1", "x-1"),
    ("5", "\\boxed{a_5}"),
    ("2", "\\boxed{log_2}"),
    ("7", "\\boxed{7i}"),
    ("e", "\\boxed{2.7}"),
    ("3.14159", "\\boxed{\\pi}"),
]

LONG = 64_000
UNITS = [
    "\n", " ", "#### a ", "answer is ", "answer: ", "the answer is not 5, but ", "\\[", "$", "$x", "(", "{", "\\boxed{",
    "\\boxed ", "1 ", "1,000,", "9^", "--", "= ", "x=1 or ", "\\frac{", "\\text{", "**", "five ", "one hundred and ",
    "- ", "1. ", "! ", "is: ", "5 apples ", "1e5", "10^{", "²", "π", "12:30 ", "<think>", "```\n", "(apples) ",
    "Note: ",
    "½", "1½", "<answer>", "<answer>a</answer>", "0.\\overline{3}", "5 km/h ", "five minutes ", "x = 2, ", "x = 2 or ",
    "option A is ", "yes, ", "5 and ", "are 5, ", "$3k", "five (5)", "(5) five ", "square ", "per ", "March 3 ",
    "\\\\[4pt]", "\\\\ ", "A. ", "1-2-", "1.2.", "C4H", "5_", "\\{", "minus ", "°C", "Room 5 ", "\\boxed{5} ",
]  # fmt: skip


@pytest.mark.parametrize(("reference", "completion"), SAME)
def test_the_same_answer_is_right(reference: str, completion: str) -> None:
    assert grade(completion, reference).correct


@pytest.mark.parametrize(("reference", "completion"), OTHER)
def test_another_answer_is_wrong(reference: str, completion: str) -> None:
    assert not grade(completion, reference).correct


@pytest.mark.parametrize("unit", UNITS)
def test_no_text_takes_long(unit: str) -> None:
    """Of 64,000 characters; the limit is far above what any takes (0.1 s) and far below what two took (20 s)."""
    text = (unit * LONG)[:LONG]
    started = time.process_time()
    stated = (f"The answer is {text}", f"The answers are {text}", f"{text}\nThe answer is 5", f"#### {text}")
    for completion in (text, *stated, f"\\boxed{{{text}}}", f"\\boxed{{{text[:1990]}}}"):
        grade(completion, "Alice")
    grade(text, text)
    gold_of(text)
    assert time.process_time() - started < 5


PIECES = st.sampled_from(
    [*UNITS, "5", "-", "\\boxed{5}", "}", "The answer is ", "#### ", "\\sqrt{", "cm", "\u2212", "\ud800"]
)
ANY = st.text() | st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join)


@settings(max_examples=300)
@given(completion=ANY, reference=ANY)
def test_no_pair_of_texts_breaks_it(completion: str, reference: str) -> None:
    grade(completion, reference)


@settings(max_examples=100)
@given(answer=ANY)
def test_whatever_is_an_answer_equals_itself(answer: str) -> None:
    gold = gold_of(answer)
    assert not plain(gold) or equivalent(gold, gold)
