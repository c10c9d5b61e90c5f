"""The public functions as a notebook uses them: scripted engines, a real training of a tiny student."""

import json
from pathlib import Path

import datasets
import pytest
import structlog

import cgd_ray
from cgd_ray.report.outcome import Outcome
from cgd_ray.stages.resolved import ResolvedRun
from tests.unit.training.tiny import write_tiny_model

pytestmark = pytest.mark.usefixtures("cluster")
PROMPTS, HELDOUT = 24, 4


def recipe(root: Path) -> cgd_ray.Recipe:
    write_tiny_model(root / "student")
    rows = [{"prompt": f"What is {number} + 3?", "answer": f"#### {number + 3}"} for number in range(PROMPTS)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "run": {"name": "r", "root": str(root)},
        "data": {
            "type": "jsonl", "path": str(root / "data.jsonl"), "reference_column": "answer",
            "holdout": {"count": HELDOUT},
        },
        "student": {"model": str(root / "student"), "engine": {"type": "scripted"}},
        "teacher": {"engine": {"type": "scripted", "model": "t"}},
        "training": {"batch_size": 8, "max_length": 2000, "resources": {"cpus_per_worker": 1}},
    }  # fmt: skip
    return cgd_ray.parse_recipe(tree, "test")


def test_a_run_its_tables_and_a_comparison(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    with pytest.raises(cgd_ray.CgdError, match="nothing was run there yet"):
        cgd_ray.read_table(made, "examples")
    generated = cgd_ray.run(made, ["generate"])
    assert generated.generation.result.stages["refine"]["ok"] == PROMPTS - HELDOUT
    assert (generated.training, generated.evaluation) == (None, None)
    outcome = cgd_ray.run(made)
    assert outcome.generation.cost.reused
    assert outcome.training
    assert outcome.evaluation
    assert outcome.evaluation.result.first.difference
    examples = cgd_ray.read_table(made, "examples", ["prompt", "draft"]).to_pandas()
    assert list(examples) == ["prompt", "draft"]
    assert len(examples) == outcome.curation.result.kept
    critiques = datasets.Dataset(cgd_ray.read_table(made, "critique"))
    assert set(critiques["status"]) == {"ok"}
    measures = cgd_ray.analyze(made)
    assert set(measures) == {"base", "trained"}
    assert measures["base"].rows == outcome.curation.result.kept
    # It was trained on (x, y', c): the refinements surprise it less under that context.
    assert measures["trained"].nll["critique"].value < measures["base"].nll["critique"].value
    assert cgd_ray.analyze(made) == measures
    assert "input-specific part" in (tmp_path / "runs/r/analysis.md").read_text()
    comparison = cgd_ray.compare(made, ["cgd", "refsft"], seeds=2)
    outcomes = comparison.students
    assert list(outcomes) == ["cgd", "refsft", "cgd-seed2", "refsft-seed2"]
    assert all(one.generation.cost.reused and one.training for one in outcomes.values())
    weights = {(tmp_path / f"runs/r-{name}/student/model.safetensors").read_bytes() for name in outcomes}
    assert len(weights) == 4
    assert "| refsft | cgd |" in (tmp_path / "runs/r/comparison.md").read_text()
    assert [(pair.first, pair.second) for pair in comparison.pairs["heldout"]] == [
        ("cgd", "base"), ("refsft", "base"), ("refsft", "cgd"),
    ]  # fmt: skip
    own = [outcomes[name].evaluation.result.first.difference.difference for name in ("cgd", "cgd-seed2")]
    assert comparison.pairs["heldout"][0].difference.difference == pytest.approx(sum(own) / 2)
    assert comparison.pairs["heldout"][0].seeds


def test_rows_of_other_runs_of_the_root_are_left_out(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    tree = made.model_dump(mode="json")
    tree["run"]["name"] = "other"
    tree["data"]["prompt_template"] = "Say: {{ prompt }}"
    other = cgd_ray.parse_recipe(tree, "test")
    for one in (made, other):
        cgd_ray.run(one, ["generate"])
    prompts = {one.run.name: cgd_ray.read_table(one, "prompts").to_pylist() for one in (made, other)}
    for one in (made, other):
        trained = {row["prompt_id"] for row in prompts[one.run.name] if row["split"] == "train"}
        drafts = cgd_ray.read_table(one, "draft", ["prompt_id", "text"])
        assert len(drafts) == PROMPTS - HELDOUT
        assert set(drafts["prompt_id"].to_pylist()) == trained
    assert len(cgd_ray.read_table(made, "dropped")) == 0


def test_compared_methods_share_the_model_of_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(tmp_path)
    revisions = []

    def train(run: ResolvedRun) -> Outcome:
        revisions.append(run.recipe.student.revision)
        (tmp_path / "student/config.json").write_text("{}")  # as if another model had been put there
        if len(revisions) == 2:
            raise cgd_ray.CgdError("enough")
        return Outcome("", None, None, None)  # type: ignore[arg-type]

    monkeypatch.setattr("cgd_ray.pipeline.compare.run_pipeline", train)
    with pytest.raises(cgd_ray.CgdError, match="enough"):
        cgd_ray.compare(made, ["cgd", "refsft"])
    assert revisions[0] == revisions[1] is not None


def test_keys_are_masked_in_log_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_API_KEY", "sk-planted-secret-0123456789")
    tree = recipe(tmp_path).model_dump(mode="json")
    openai = {"type": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key_env": "MY_API_KEY"}
    tree["teacher"] = {"engine": openai}
    made = cgd_ray.parse_recipe(tree, "test")
    with pytest.raises(cgd_ray.CgdError):
        cgd_ray.read_table(made, "examples")
    structlog.get_logger().warning("refused", error="the key sk-planted-secret-0123456789 is unknown")
    said = capsys.readouterr()
    assert "the key *** is unknown" in said.err
    assert "planted" not in said.out + said.err


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    cgd_ray.run(made, ["generate"])
    with pytest.raises(cgd_ray.CgdError, match=r"table draft: no column nope\. Fix: take some of prompt_id"):
        cgd_ray.read_table(made, "draft", ["nope"])
    for phases in ("train", ["generat"]):
        with pytest.raises(cgd_ray.CgdError, match=r"phases .*: unknown\. Fix: take a list of evaluate, generate"):
            cgd_ray.run(made, phases)  # type: ignore[arg-type]
    with pytest.raises(cgd_ray.CgdError, match="compare: no method"):
        cgd_ray.compare(made, [])
    with pytest.raises(cgd_ray.CgdError, match="table answer: not made yet by run r"):
        cgd_ray.read_table(made, "answer")
    with pytest.raises(cgd_ray.CgdError, match=r"table nothing: unknown\. Fix: take one of prompts, draft"):
        cgd_ray.read_table(made, "nothing")  # type: ignore[arg-type]
    with pytest.raises(cgd_ray.CgdError, match=r"training\.method"):
        cgd_ray.compare(made, ["nothing"])
