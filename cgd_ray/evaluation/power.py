"""What a number of questions can show: the smallest difference between two students that a test would find."""

import math
from statistics import NormalDist

from scipy.optimize import brentq


def smallest_difference(questions: int, discordant: float, confidence: float, power: float) -> float | None:
    """The smallest difference in accuracy that McNemar's test finds with a given power.

    Args:
        questions: questions that both students answer, at least 1.
        discordant: share of the questions that only one of the two answers correctly, in (0, 1].
        confidence: 1 minus the test's level, in (0, 1).
        power: probability of finding the difference if it is there, in (0, 1).

    Returns:
        The difference in (0, `discordant`]; None if not even the largest one would be found.

    Source: R. Connor, Sample size for testing differences in proportions for the paired-sample design, Biometrics 43
    (1987).
    """
    normal = NormalDist()
    level, found = normal.inv_cdf(0.5 + confidence / 2), normal.inv_cdf(power)

    def lacking(difference: float) -> float:
        spread = level * math.sqrt(discordant) + found * math.sqrt(max(0.0, discordant - difference**2))
        return spread - math.sqrt(questions) * difference

    return None if lacking(discordant) > 0 else float(brentq(lacking, 0.0, discordant))
