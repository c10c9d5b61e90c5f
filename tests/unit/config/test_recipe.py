"""Recipes: what is accepted, and the one line that a mistake gets."""

from pathlib import Path

import pytest

from cgd_ray.config.recipe import load_recipe, parse_recipe
from cgd_ray.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[3] / "jobs" / "recipes").glob("*.yaml"))
PAPER = RECIPES[0].with_name("llama31-8b-webinstruct.yaml")
MINIMAL = {
    "run": {"name": "r", "root": "/tmp/r"},
    "data": {"type": "demo"},
    "student": {"model": "s"},
    "teacher": {"engine": {"type": "vllm", "model": "t"}},
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(path).run.name


def test_the_contracted_recipes_are_there() -> None:
    names = {path.name for path in RECIPES}
    assert names >= {
        "demo.yaml",
        "demo-full.yaml",
        "gsm8k-cpu.yaml",
        "llama31-8b-webinstruct.yaml",
        "llama31-8b-webinstruct-8x8.yaml",
        "openai-teacher.yaml",
    }


def test_the_paper_recipe_has_the_papers_settings() -> None:
    recipe = load_recipe(PAPER)
    assert recipe.generation.critique.reference == "none"
    assert recipe.generation.draft.temperature == recipe.generation.refine.temperature == 0
    assert (recipe.training.method, recipe.training.epochs, recipe.training.batch_size) == ("cgd", 1, 64)
    assert recipe.training.learning_rate == pytest.approx(1e-6)
    assert recipe.data.limit == 100_000


def test_the_papers_recipes_differ_in_their_size_alone() -> None:
    """And another number of nodes is what the larger one's head says."""
    sizes = ["run.name=llama31-8b-webinstruct-8x8", "student.engine.replicas=64", "teacher.engine.replicas=16"]
    assert load_recipe(PAPER, sizes) == load_recipe(PAPER.with_stem("llama31-8b-webinstruct-8x8"))
    on_kubernetes = load_recipe(RECIPES[0].parents[2] / "cluster" / "base" / "recipe.yaml")
    for section in ("student", "teacher", "generation", "training", "evaluation"):
        assert getattr(on_kubernetes, section) == getattr(load_recipe(PAPER), section), section


def test_overrides_are_yaml_values_at_dotted_keys(tmp_path: Path) -> None:
    path = RECIPES[0]
    recipe = load_recipe(path, ["run.seed=7", "training.resources.cpus_per_worker=2", "generation.draft.max_tokens=9"])
    assert recipe.run.seed == 7
    assert recipe.training.resources.cpus_per_worker == 2
    assert recipe.generation.draft.max_tokens == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"epoch": 2}}, "training.epoch: unknown key; did you mean epochs?"),
        ({"data": {"type": "demo", "holdout": {"counts": 2}}}, "data.holdout.counts: unknown key; did you mean count?"),
        ({"training": {"schedule": "cosine"}}, "training.schedule: renamed. Fix: write training.lr_scheduler"),
        ({"training": {"checkpoint_every": 5}}, "training.checkpoint_every: renamed. Fix: write training.checkpoint_i"),
        ({"trainings": {}}, "trainings: unknown key; did you mean training?"),
        (
            {"teacher": {"engine": {"type": "vllm", "model": "t", "replica": 2}}},
            "teacher.engine.replica: unknown key; did you mean replicas?",
        ),
        ({"training": {"zzz": 2}}, "training.zzz: unknown key; `cgd validate --schema` lists the known ones"),
        ({"data": {"type": "demo", "limit": 0}}, "data.limit: Input should be greater than or equal to 1 (got 0)"),
        ({"data": {"type": "csv"}}, "data: "),
        ({"data": {"type": "demo", "holdout": {}}}, "fraction and count. Fix: give one"),
        ({"training": {"method": "mix", "mix": {}}}, "training.mix: Dictionary should have at least 1 item"),
        ({"training": {"lora": {"targets": []}}}, "training.lora.targets"),
        ({"training": {"resources": {"gpus_per_worker": 0.5}}}, "training.resources.gpus_per_worker: Input should be"),
        ({"training": {"attention": "flash_attention_2", "precision": "fp32"}}, "flash_attention_2 takes no fp32"),
        (
            {"training": {"method": "distill"}},
            "training.method distill learns the teacher's answers. Fix: set generation.answer.enabled=true",
        ),
        ({"training": {"batch_size": 1, "workers": 2}}, "batch_size 1 is smaller than workers 2"),
        ({"training": {"min_workers": 3, "workers": 2}}, "min_workers 3 is larger than workers 2"),
        ({"training": {"export": "best"}}, "export best without validation rows"),
        ({"training": {"offload": "cpu", "zero_stage": 0}}, "offload cpu with zero_stage 0"),
        ({"generation": {"draft": {"samples": 4}}}, "samples above 1 with temperature 0"),
        ({"serving": {"model_id": "a:b"}}, "serving.model_id"),
        (
            {"data": {"type": "jsonl", "path": "x"}, "curation": {"require_correct": True}},
            "curation.require_correct needs references. Fix: set data.reference_column",
        ),
        (
            {"data": {"type": "jsonl", "path": "x"}},
            "evaluation.sets heldout needs references. Fix: set data.reference_column",
        ),
        ({"teacher": {"engine": {"type": "openai", "model": "m", "spend_ceiling": 1.0}}}, "spend_ceiling without"),
        ({"student": {"model": "s", "api_key": "sk-123"}}, "student.api_key: unknown key"),
        ({"run": {"name": "r", "root": "gs://b"}}, "run.root: only local paths and s3://BUCKET/PREFIX are supported"),
    ],
)
def test_a_mistake_gets_one_line_that_names_the_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe({**MINIMAL, **change}, "recipe.yaml")
    text = str(caught.value)
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed", "write section.key=value"),
        ("run.name.x=1", "name is not a section"),
        ("run.seed=[", "not valid YAML"),
    ],
)
def test_a_bad_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(RECIPES[0], [override])


def test_a_missing_recipe_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/no/recipe\.yaml: the recipe cannot be read \(No such file"):
        load_recipe("/no/recipe.yaml")


def test_the_schema_describes_every_key() -> None:
    from cgd_ray.config.recipe import Recipe

    schema = Recipe.model_json_schema()
    assert schema["$defs"]["TrainingSection"]["properties"]["batch_size"]["description"].startswith("Rows of one")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run: {name: a, root: b}\nrun: {name: c, root: d}\n", "the key run is given twice"),
        ("run:\n  name: a\n  root: b\n  name: c\n", 'the key name is given twice in "<unicode string>", line 4'),
        ("data: [{a: 1, a: 2}]\n", "the key a is given twice"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_given_twice_in_an_override_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("run: {name: a, root: b}\n")
    with pytest.raises(ConfigError, match=r"override .*: not valid YAML: the key type is given twice"):
        load_recipe(tmp_path / "recipe.yaml", ["data={type: demo, type: hf}"])


def test_anchors_and_merges_are_as_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "run: {<<: &x {name: a, root: b}, name: c, <<: {seed: 4}}\ndata: {type: demo}\n"
    )
    with pytest.raises(ConfigError, match=r"^[^:]*: student: Field required"):
        load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text("run: &r {name: a, root: b}\nloop: &l [*l]\n")
    with pytest.raises(ConfigError, match="data: Field required"):
        load_recipe(tmp_path / "recipe.yaml")
