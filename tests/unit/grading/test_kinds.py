r"""Answers whose kind decides: matrices, several solutions, units, codes, factors, percentages (docs/grading.md)."""

import pytest

from cgd_ray.grading.grade import grade

COLUMN = r"\begin{pmatrix} 2 \\ 3 \end{pmatrix}"

SAME = [
    # matrices
    (COLUMN, r"\boxed{\begin{pmatrix}2\\3\end{pmatrix}}"),
    (COLUMN, r"\boxed{\begin{bmatrix} 2 \\[4pt] 3 \end{bmatrix}}"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\boxed{\begin{pmatrix}1&2\\ 3&4\end{pmatrix}}"),
    (r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}", r"\boxed{\begin{pmatrix}-7\\16\\5\end{pmatrix}}"),
    # several solutions
    ("2, 3", "The answer is x = 2 or x = 3."),
    ("2, 3", "The solutions are $x=2$ and $x=3$."),
    ("2, 3", "The answers are 2 and 3."),
    ("2, 3", "The roots are 3 and 2."),
    ("x = 5\ny = 6", r"\boxed{5, 6}"),
    # units
    ("12 minutes", "It takes 12 minutes in total."),
    ("5 minutes", "It takes five minutes."),
    ("5 km/h", "The speed is 5 kilometers per hour."),
    ("10 m/s", r"\boxed{10 \text{ m s}^{-1}}"),
    ("5 mph", r"\boxed{5 \text{ miles per hour}}"),
    ("120 square feet", "The area is 120 ft²."),
    ("10 miles per day", "He runs 10 miles."),
    ("25 °C", "It is 25 degrees Celsius."),
    ("25 °C", r"\boxed{25^\circ}"),
    ("5 lb", "5 pounds"),
    ("5 apples", "5 in total"),
    ("$0.50", r"\boxed{50\text{ cents}}"),
    ("1 hour", r"\boxed{60 \text{ minutes}}"),
    ("1 km", r"\boxed{1000 \text{ m}}"),
    ("9 pairs", "She has 9 pairs of socks."),
    ("13", "Together, they have 8 + 5 = 13 pairs of shoes."),
    # codes, dates
    ("42_5", r"\boxed{42}"),
    ("1011_2", r"\boxed{1011_{2}}"),
    ("0xFF", r"\boxed{0xff}"),
    ("H2O", r"\boxed{H_2O}"),
    ("CO_2", "CO2"),
    ("March 3", r"\boxed{3\text{ March}}"),
    ("January 5", "January 5"),
    ("xy", r"\boxed{yx}"),
    ("x-y", r"\boxed{-y+x}"),
    ("f'(x)=2x", r"\boxed{2x}"),
    # factors
    ("1200000", "1.2M"),
    ("3k", r"\boxed{3000}"),
    ("3000", "She earns $3k per month."),
    ("500000", "5 lakh"),
    ("36", "3 dozen eggs"),
    ("60", "It takes five dozen eggs."),
    ("1000", "a thousand"),
    ("2.5", "two and a half"),
    # percentages
    ("25%", "25"),
    ("0.25", "25%"),
    ("25", "The answer is 25 percentage points."),
    ("40", "40 percent"),
    # several boxes
    (r"So $x = \boxed{2}$ and $y = \boxed{3}$.", r"$x=\boxed{2}$, $y=\boxed{3}$"),
    (r"So $x = \boxed{2}$ and $y = \boxed{3}$.", r"\boxed{3}"),
    # forms
    ("18", r"Janet makes \$18 every day."),
    ("-5", "negative 5"),
    ("-5", "It is minus five."),
    ("5", "<answer>5</answer>"),
    ("5", "<think>7</think>\n<answer> 5 apples </answer>"),
    ("B", "The correct option is B."),
    ("B", "Therefore, option (B) is correct."),
    ("B", "Choice: B"),
    ("B", "So the answer is option B."),
    ("Paris", r"\boxed{B. Paris}"),
    ("B. Paris", "The answer is Paris."),
    ("Yes", "Yes, because 5 > 3."),
    ("No", "No, it is not."),
    ("Yes", "The answer is: Yes, they are."),
    ("5", r"\boxed{f(2)=5}"),
    ("5", "So $P(2) = 5$."),
    ("10", r"\boxed{\binom52=10}"),
    ("24", "$$4! = 24$$"),
    ("3", r"\boxed{\log_2 8 = 3}"),
    (r"\frac{1}{6}", r"\boxed{P(A \cap B) = \frac{1}{6}}"),
    ("5", "x ≈ 5"),
    ("5", r"\boxed{x \approx 5}"),
    ("7", r"\boxed{7\,}"),
    ("7", r"\boxed{\,7\,}"),
    ("7", r"\boxed{\textcolor{red}{7}}"),
    ("1/3", r"\boxed{0.\overline{3}}"),
    (r"0.\overline{36}", r"\boxed{4/11}"),
    ("½", "0.5"),
    (r"1\frac{1}{2}", "1½"),
    ("2.5", "2½"),
    ("3 PM", r"\boxed{3:00 PM}"),
    ("15:30", "3:30 PM"),
    ("3:4", "The ratio is 3:4."),
    (r"12\pi", "The area is 12π square units."),
    ("5", "The result is 5 (five)."),
    ("5", "She has five (5) apples."),
    ("####\n5", r"\boxed{5}"),
    ("= 5", r"\boxed{5}"),
    (r"\varnothing", r"\boxed{\emptyset}"),
    (r"≥ 5", r"\boxed{\geq 5}"),
    ("5", "__5__"),
    ("8", "Then x + 3 = 11, so x = 8."),
    ("16", "Seth is twice as old as Brooke, so Seth is 8 x 2 = 16."),
    ("(2,3)", "The solution is (2,3)."),
    ("5", "5 (approximately)"),
    ("2x", r"\boxed{\frac{dy}{dx} = 2x}"),
]  # fmt: skip

OTHER = [
    # matrices
    (COLUMN, r"\boxed{\begin{pmatrix} 3 \\ 2 \end{pmatrix}}"),
    (COLUMN, r"\boxed{\begin{pmatrix} 6 \\ 1 \end{pmatrix}}"),
    (r"\begin{pmatrix} -1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix}-3\end{pmatrix}}"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\boxed{\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}}"),
    # several solutions
    ("3", "The answer is x = 2 or x = 3."),
    ("3", "Therefore, $x = 2$ or $x = 3$."),
    ("3", "So y = 2, x = 3."),
    ("3", "The roots are 2 and 3."),
    ("18", "She pays $18 or $20."),
    ("A", "(A) or (B)"),
    # units
    ("5 hours", "It takes 5 minutes."),
    ("5 hours", "It takes five minutes."),
    ("5 hours", "It is a 5-minute walk."),
    ("$5", "She pays 5 cents."),
    ("5", "5 sixths"),
    ("5", "The probability is 5 thousandths."),
    ("5", "5 lakh"),
    ("5", "There are five dozen."),
    ("5", "She ate 5 and a half."),
    ("2", "She ate two and a half."),
    ("5", "It is minus five."),
    ("3", "It happened on March 3."),
    ("3", "It happened on 3 March."),
    ("5", "Room 5"),
    ("5", "He lives in apartment 5."),
    ("5 km/h", r"\boxed{5 \text{ km/s}}"),
    ("5 m/s", r"\boxed{5 \text{ m}}"),
    ("5 miles per hour", r"\boxed{5 \text{ miles}}"),
    ("5 cubic meters", r"\boxed{5\text{ square meters}}"),
    ("5 cm", r"\boxed{5 \text{ cm}^2}"),
    ("12 m/s^2", "12 m/s"),
    ("25 °C", "It is 25 °F."),
    ("5 mW", r"\boxed{5\text{ MW}}"),
    ("5 dollars per hour", r"\boxed{5 \text{ dollars per day}}"),
    ("$5", r"\boxed{5\%}"),
    ("5 km", "5%"),
    ("1 m", r"\boxed{1 \text{ cm}}"),
    # codes, orders, dates
    ("3 2 1", r"\boxed{1 2 3}"),
    ("3 2 1", r"\boxed{6}"),
    ("2024-01-05", "2024-05-01"),
    ("2018", r"\boxed{2024-01-05}"),
    ("-679", r"\boxed{555-1234}"),
    ("192.168.0.1", r"\boxed{192.168.0.2}"),
    ("1011_2", r"\boxed{1011_3}"),
    ("52_8", r"\boxed{52_{9}}"),
    ("5", r"\boxed{5_6}"),
    ("0x1F", r"\boxed{0x2F}"),
    ("0", r"\boxed{0x2F}"),
    ("0b101", r"\boxed{0b110}"),
    ("C4H10", r"\boxed{C10H4}"),
    ("AB", r"\boxed{BA}"),
    ("no", "on"),
    ("f'(x)", r"\boxed{f(x)}"),
    ("A^T", r"\boxed{A}"),
    ("A^T A", r"\boxed{A^2}"),
    ("(0,1)", r"\boxed{\{0,1\}}"),
    (r"\{1,2\}", r"\boxed{[1,2]}"),
    ("March 3", r"\boxed{4\text{ March}}"),
    ("8:05", r"\boxed{8:5}"),
    ("3 PM", "3 AM"),
    # factors
    ("5", "5 crore"),
    ("5", "5 k"),
    ("5", "5 mil"),
    ("5", "5 gross"),
    ("5", "5 score"),
    ("5", "5 pairs"),
    ("5", "5 bn"),
    ("300 K", "300k"),
    # percentages
    ("0.25", r"\boxed{0.25\%}"),
    ("0.5%", r"\boxed{0.5}"),
    ("25", "0.25"),
    # several boxes
    (r"So $x = \boxed{2}$ and $y = \boxed{3}$.", r"$x=\boxed{7}$, $y=\boxed{3}$"),
    # forms
    ("A", "Option A is wrong."),
    ("1½", "11/2"),
    ("0.3", r"\boxed{0.\overline{3}}"),
    ("B. Paris", "The answer is Rome."),
    ("B. Paris", r"\boxed{C. Paris}"),
    ("12", "The area is 12π."),
    ("18", "He adds 18 miles more, which is 18+21 = 39 miles."),
    ("11", "Then x + 3 = 11, so x = 8."),
    ("4", "So x = ±4."),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "completion"), SAME)
def test_the_same_answer_is_right(reference: str, completion: str) -> None:
    assert grade(completion, reference).correct


@pytest.mark.parametrize(("reference", "completion"), OTHER)
def test_another_answer_is_wrong(reference: str, completion: str) -> None:
    assert not grade(completion, reference).correct


@pytest.mark.parametrize("text", ["<=", "!=", "a <= b", "a != b", ">=!", "!=x!=", "<=$", "x<=,", "\uff1c\uff1d"])
def test_a_relation_that_is_no_equation_ends(text: str) -> None:
    for completion in (text, f"\\boxed{{{text}}}", f"The answer is {text}"):
        assert not grade(completion, "#### 18").correct
        assert not grade(completion, "x - y").correct
        assert not grade("The answer is x - y", completion).correct


def test_a_choice_within_choices_ends() -> None:
    assert not grade(r"\boxed{" + "A. " * 600 + "x}", "Paris").correct
    assert not grade("minus " * 30 + "five", "5").correct
