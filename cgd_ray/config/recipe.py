"""The whole recipe: one YAML file, with dotted overrides, to one frozen object."""

import difflib
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import ValidationError, model_validator

from cgd_ray.config.base import Section
from cgd_ray.config.data import DataSection, DemoData
from cgd_ray.config.engine import StudentEngine, StudentSection, TeacherEngine, TeacherSection
from cgd_ray.config.evaluation import EvaluationSection
from cgd_ray.config.generation import CurationSection, GenerationSection
from cgd_ray.config.run import RunSection, StorageSection
from cgd_ray.config.training import ServingSection, TrainingSection
from cgd_ray.errors import ConfigError
from cgd_ray.methods import targets_of
from cgd_ray.redaction import name_secret_variable

_RENAMED = {
    "training.gradient_clipping": "renamed. Fix: write training.max_grad_norm",
    "training.schedule": "renamed. Fix: write training.lr_scheduler",
    "training.checkpoint_every": "renamed. Fix: write training.checkpoint_interval",
    "training.offload_folder": "no longer there, nor is offload nvme. Fix: take training.offload: cpu, or more GPUs",
}
"""Keys of earlier versions."""

_TAGS = {"demo", "jsonl", "parquet", "hf", "vllm", "openai", "scripted"}
"""pydantic puts the tag of a discriminated union into an error's location; the user's key has no such part."""


class Recipe(Section):
    """All settings of one run."""

    run: RunSection
    storage: StorageSection = StorageSection()
    data: DataSection
    student: StudentSection
    teacher: TeacherSection
    generation: GenerationSection = GenerationSection()
    curation: CurationSection = CurationSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    serving: ServingSection = ServingSection()

    @property
    def training_seed(self) -> int:
        """`training.seed`, or the run's."""
        return self.run.seed if self.training.seed is None else self.training.seed

    @property
    def has_references(self) -> bool:
        """Whether rows can carry the data set's own answer."""
        return isinstance(self.data, DemoData) or self.data.reference_column is not None

    @property
    def needs_references(self) -> list[str]:
        """The settings that can do nothing for prompts without references."""
        wants = {
            "training.method sft": self.training.enabled and "reference" in targets_of(self.training.methods),
            "curation.require_correct": self.curation.require_correct,
            "generation.critique.reference dataset": self.generation.critique.reference == "dataset",
        }
        return [key for key, wanted in wants.items() if wanted]

    @model_validator(mode="after")
    def _references_where_needed(self) -> Self:
        asked = ["evaluation.sets heldout"] if self.evaluation.asks_heldout else []
        for key in [*self.needs_references, *asked]:
            if not self.has_references:
                raise ValueError(f"{key} needs references. Fix: set data.reference_column, or switch that off")
        if self.training.enabled and "answer" in targets_of(self.training.methods) and not self.generation.needs_answer:
            raise ValueError(
                "training.method distill learns the teacher's answers. Fix: set generation.answer.enabled=true"
            )
        return self

    @model_validator(mode="after")
    def _prompts_have_room(self) -> Self:
        student, teacher, generation = self.student.engine, self.teacher.engine, self.generation
        asked: list[tuple[str, int, str, StudentEngine | TeacherEngine]] = [
            ("generation.draft", generation.draft.max_tokens, "student.engine", student),
            ("generation.critique", generation.critique.max_tokens, "teacher.engine", teacher),
            ("generation.refine", generation.refine.max_tokens, "teacher.engine", teacher),
        ]
        if generation.needs_answer:
            asked.append(("generation.answer", generation.answer.max_tokens, "teacher.engine", teacher))
        if self.evaluation.enabled:
            longest_answer = max(self.evaluation.decoding(one).max_tokens for one in self.evaluation.sets)
            asked.append(("evaluation", longest_answer, "student.engine", student))
        for stage, tokens, name, engine in asked:
            longest = engine.max_model_len
            if longest is not None and tokens >= longest:
                raise ValueError(
                    f"{stage}.max_tokens {tokens} leaves no room for a prompt. "
                    f"Fix: lower it, or raise {name}.max_model_len {longest}"
                )
        return self


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe and apply `section.key=value` overrides, whose values are YAML too.

    Raises:
        ConfigError: one line that names the file or the key, and the fix.
    """
    tree = _read_yaml(Path(path))
    for override in overrides or []:
        _apply(tree, override)
    return parse_recipe(tree, source=str(path))


def parse_recipe(tree: dict[str, Any], source: str) -> Recipe:
    """Validate a recipe given as nested mappings; `source` names it in the error."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from error
    for variable in recipe.teacher.engine.secret_variables():
        name_secret_variable(variable)
    return recipe


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = _load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: the recipe cannot be read ({error.strerror}). Fix: give the path of a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text in UTF-8. Fix: give a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: not a mapping. Fix: write sections (run, data, student, teacher, ...)")
    return tree


def _load_yaml(text: str) -> object:
    _require_unique_keys(yaml.compose(text, yaml.SafeLoader), set())
    loaded: object = yaml.safe_load(text)
    return loaded


def _require_unique_keys(node: yaml.Node | None, seen: set[int]) -> None:
    """YAML takes the last of two equal keys without a word."""
    if node is None or id(node) in seen:  # an alias may stand inside of what it names
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _require_unique_keys(inner, seen)
    if isinstance(node, yaml.MappingNode):
        keys = set[str]()
        for key, inner in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                keys.add(key.value)
            _require_unique_keys(inner, seen)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"override {override!r}: not an assignment. Fix: write section.key=value")
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent} is not a section. Fix: write section.key=value")
        node = child
    try:
        node[leaf] = _load_yaml(text)
    except yaml.YAMLError as error:
        detail = getattr(error, "problem", None) or "the value cannot be read"
        raise ConfigError(f"override {override!r}: not valid YAML: {detail}") from error


def _explain(error: ValidationError) -> str:
    """The first mistake in one line, with the number of the others."""
    errors = error.errors(include_url=False, include_context=False)
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if str(part) not in _TAGS) or "recipe"
    if first["type"] == "extra_forbidden":
        message = _unknown_key(first["loc"])
    else:
        message = (
            f"{first['msg'].removeprefix('Value error, ')} (got {first['input']!r})"
            if _is_scalar(first["input"]) and first["loc"][-1:] != ("api_key_env",)  # it may be the key itself
            else first["msg"].removeprefix("Value error, ")
        )
    others = f" ({len(errors) - 1} more after this one)" if len(errors) > 1 else ""
    return f"{where}: {message}{others}"


def _unknown_key(location: tuple[int | str, ...]) -> str:
    """What to write instead: the nearest key of that section, where one is near."""
    *parents, key = location
    if new := _RENAMED.get(".".join(map(str, location))):
        return new
    section: Any = Recipe
    for parent in parents:
        section = _member(section, str(parent))
    near = difflib.get_close_matches(str(key), getattr(section, "model_fields", {}), n=1)
    return (
        f"unknown key; did you mean {near[0]}?" if near else "unknown key; `cgd validate --schema` lists the known ones"
    )


def _member(section: Any, part: str) -> Any:
    """The section below `section` that a part of an error's location leads to; None where that is no section."""
    if part in getattr(section, "model_fields", {}):
        return section.model_fields[part].annotation
    for choice in get_args(section):
        tag = getattr(choice, "model_fields", {}).get("type")
        if tag is not None and part in get_args(tag.annotation):
            return choice
    return None


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int | float | bool)
