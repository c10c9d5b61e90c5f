"""Figures from token scores, with known parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgd_ray.analysis.contexts import CONTEXTS, neutral_text
from cgd_ray.analysis.measures import DIFFERENCES, measure
from cgd_ray.errors import CgdError
from cgd_ray.methods import Contexts, Example
from cgd_ray.prompts.templates import load_prompts
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import SCORES
from cgd_ray.storage.tables import Table

LEVELS = {"prompt": 3.0, "draft": 2.5, "critique": 1.0, "shuffled": 2.0, "neutral": 2.4, "answer": 2.8}


def table(root: Path, prompts: int, samples: int, spread: float) -> Table:
    """Rows whose prompts differ by `spread` in what the critique explains."""
    generator = np.random.default_rng(1)
    made, found = Table(Store(str(root)), "scores", "0" * 16, SCORES), list[dict[str, Any]]()
    for prompt in range(prompts):
        shift = spread * generator.standard_normal()
        for sample in range(samples):
            for context, level in LEVELS.items():
                nll = [level + (shift if context == "critique" else 0.0)] * (2 + sample)
                key = {"prompt_id": f"{prompt:032x}", "sample": sample, "context": context}
                found.append({**key, "nll": nll, "entropy": [level / 2] * len(nll)})
    made.write_part("part-000000", found)
    return made


def test_parts_add_up(tmp_path: Path) -> None:
    found = measure(table(tmp_path, 50, 2, spread=0.1), 0.95, 500, seed=0)
    assert (found.rows, found.prompts) == (100, 50)
    values = {name: estimate.value for name, estimate in found.differences.items()}
    assert set(values) == set(DIFFERENCES)
    assert values["critique"] == pytest.approx(values["generic part"] + values["input-specific part"])
    assert values["generic part"] == pytest.approx(0.5)
    assert values["length alone"] == pytest.approx(0.1, abs=1e-6)
    assert values["final answer alone"] == pytest.approx(0.2, abs=1e-6)
    assert found.entropy["draft"].value == pytest.approx(1.25)
    interval = found.differences["critique"].interval
    assert interval.low < values["critique"] < interval.high
    assert found.differences["generic part"].interval.high - found.differences["generic part"].interval.low < 1e-6


def test_samples_of_one_prompt_are_no_further_evidence(tmp_path: Path) -> None:
    widths = []
    for samples in (1, 8):
        found = measure(table(tmp_path / str(samples), 60, samples, spread=1.0), 0.95, 1000, seed=0)
        interval = found.differences["critique"].interval
        widths.append(interval.high - interval.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_no_rows_are_no_figure(tmp_path: Path) -> None:
    with pytest.raises(CgdError, match="no example has all contexts"):
        measure(Table(Store(str(tmp_path)), "scores", "0" * 16, SCORES), 0.95, 10, seed=0)


def example(**changes: Any) -> Example:
    texts = {"draft": "It is 5.", "critique": "2 + 2 is not 5.", "refinement": "2 + 2 = 4. The answer is \\boxed{4}."}
    return Example("00", 0, "What is 2 + 2?", **texts | {"other_critique": "Count again."} | changes)


def test_contexts_differ_in_what_they_show() -> None:
    contexts = Contexts(load_prompts("default"))
    shown = {
        name: "\n".join(turn.content for turn in make(example(), contexts) or ()) for name, make in CONTEXTS.items()
    }
    assert all("What is 2 + 2?" in text for text in shown.values())
    assert {name for name, text in shown.items() if "It is 5." in text} == {"draft", "critique", "shuffled", "neutral"}
    assert {name for name, text in shown.items() if "2 + 2 is not 5." in text} == {"critique"}
    assert {name for name, text in shown.items() if "Count again." in text} == {"shuffled"}
    assert {name for name, text in shown.items() if "The final result is 4." in text} == {"answer"}
    assert CONTEXTS["shuffled"](example(other_critique=None), contexts) is None
    assert CONTEXTS["answer"](example(refinement="It depends on many things."), contexts) is None


@pytest.mark.parametrize("length", [1, 10, 300, 2000])
def test_the_neutral_text_is_about_as_long(length: int) -> None:
    assert length - 12 <= len(neutral_text(length)) <= max(length, len("Read."))
