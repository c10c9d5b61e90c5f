"""A prompt that kills a real vLLM engine, among a thousand: the others are done, and it is set apart."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cgd_ray.config.recipe import load_recipe
from cgd_ray.generation.run import run_generation
from cgd_ray.runtime.session import ray_session
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store
from tests.poison import TOKENS_VARIABLE

ROWS = 1000
POISON = "Xylophone"


@pytest.mark.timeout(2700)
def test_one_of_a_thousand_is_quarantined(tmp_path: Path, student_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = AutoTokenizer.from_pretrained(student_dir).encode(f" {POISON}", add_special_tokens=False)
    monkeypatch.setenv(TOKENS_VARIABLE, ",".join(map(str, tokens)))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    texts = [f"What is {number} + 1?" for number in range(ROWS)]
    texts[617] = f"What is {POISON}?"
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"question": text, "answer": "#### 1"}) + "\n" for text in texts))
    recipe = load_recipe(
        "jobs/recipes/gsm8k-cpu.yaml",
        [
            f"data.path={data}",
            "data.limit=null",
            "data.holdout.count=1",
            f"run.root={tmp_path / 'root'}",
            "generation.execution=staged",
            "generation.draft.max_tokens=4",
            "student.engine.max_in_flight=16",
            "student.engine.engine_args={logits_processors: ['tests.poison:Poison']}",
            "teacher.engine={type: scripted, model: t, max_in_flight: 512}",
        ],
    )
    store = Store(recipe.run.root)
    with ray_session():
        result = run_generation(open_run(recipe, store))
    drafts = result.stages.draft.results.read().to_pylist()
    [set_apart] = [row for row in drafts if row["status"] == "quarantined"]
    assert "with this row on it, the last time alone" in set_apart["error"]
    assert len(drafts) == ROWS - 1
    assert sum(row["status"] in ("ok", "truncated") for row in drafts) == ROWS - 2
