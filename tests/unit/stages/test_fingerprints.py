"""What a shipped recipe's tables are called: a change makes every user's rows, or trainings, anew."""

import json
from pathlib import Path
from typing import Any

import pytest

from cgd_ray.config.recipe import load_recipe
from cgd_ray.data.prepare import prompts_table
from cgd_ray.stages.definitions import evaluation_stage
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import EXAMPLES
from cgd_ray.storage.tables import Table
from cgd_ray.training.dataset.encode import Counts, EncodedExamples, Encoding
from cgd_ray.training.launch.training_run import TrainingRun

REPOSITORY = Path(__file__).parents[3]
KNOWN = json.loads(Path(__file__).with_name("fingerprints.json").read_text())
TYPES = ["student.engine.dtype=float32", "training.precision=fp32"]  # `auto` is this machine's
SCRIPTED = ["student.engine={type: scripted}", "student.model=s", "teacher.engine={type: scripted, model: t}"]
CASES = {
    "demo": ("demo", [*TYPES, "teacher.engine.dtype=float32"]),
    "demo, other settings": (
        "demo",
        [
            *TYPES, "teacher.engine.dtype=float32", "generation.draft.temperature=0.7", "generation.draft.samples=2",
            "student.engine.reasoning_parser=qwen3", "training.export=best", "training.validation_fraction=0.1",
            "training.lora={rank: 8}", "evaluation.temperature=0.5", "data.system_prompt=Be short.",
            "training.context=multi-turn", "training.lr_scheduler=linear", "training.max_grad_norm=0.5",
        ],
    ),
    "compare-arms": ("compare-arms", [*TYPES, "teacher.engine.dtype=float32"]),
    "openai-teacher": ("openai-teacher", [*TYPES, "teacher.engine.omit=[seed]"]),
    "scripted": ("demo", [*SCRIPTED, "training.enabled=false"]),
}  # fmt: skip


def fingerprints(name: str, overrides: list[str], root: Path) -> dict[str, Any]:
    recipe = load_recipe(REPOSITORY / f"jobs/recipes/{name}.yaml", [*overrides, f"run.root={root}"])
    store = Store(str(root))
    run = open_run(recipe, store)
    found = {stage.name: stage.results.fingerprint for stage in run.stages.all}
    found["prompts"] = prompts_table(recipe, store)[0].fingerprint
    found["evaluation"] = evaluation_stage(
        recipe, store, "X", recipe.evaluation.decoding(recipe.evaluation.sets[0])
    ).results.fingerprint
    if recipe.training.enabled:
        encoding = Encoding(recipe.training, recipe.training_seed, run.templates, run.encoder)
        table = encoding.table(Table(store, "examples", "0123", EXAMPLES))
        found["encoded"] = table.fingerprint
        found["training"] = TrainingRun(run, EncodedExamples(table, Counts())).identity
    return found


@pytest.mark.parametrize("case", CASES)
def test_names_of_tables_and_trainings_stay(case: str, tmp_path: Path) -> None:
    assert fingerprints(*CASES[case], tmp_path) == KNOWN[case]
