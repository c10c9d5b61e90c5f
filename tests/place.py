"""A root with examples in it, on which a tiny student is trained."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import AutoModelForCausalLM

from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.config.run import StorageSection
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import EXAMPLES
from cgd_ray.storage.tables import Table
from cgd_ray.training.launch.ray_train import run_training
from cgd_ray.training.launch.training_run import TrainedStudent
from tests.unit.training.tiny import example


def make_recipe(name: str, root: str, model: Path, storage: StorageSection, **training: Any) -> Recipe:
    small = {
        "method": "mix",
        "epochs": 2,
        "batch_size": 4,
        "micro_batch_tokens": 256,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "workers": 2,
        "checkpoint_interval": 3,
        "max_failures": 0,
    }
    tree = {
        "run": {"name": name, "root": root},
        "storage": storage.model_dump(),
        "data": {"type": "demo"},
        "student": {"model": str(model)},
        "teacher": {"engine": {"type": "scripted"}},
        "training": small | training,
    }
    return parse_recipe(tree, source="test")


class Place:
    """A root with examples in it."""

    def __init__(self, root: str, model: Path, storage: StorageSection | None = None, rows: int = 22) -> None:
        self.root, self.model, self.storage = root, model, storage or StorageSection()
        self.store = Store(root, self.storage)
        self.examples = Table(self.store, "examples", f"rows{rows}", EXAMPLES)
        fields = EXAMPLES.names
        self.examples.write_part(
            "part-0", [{field: getattr(example(number), field) for field in fields} for number in range(rows)]
        )

    def train(self, name: str, **training: Any) -> TrainedStudent:
        recipe = make_recipe(name, self.root, self.model, self.storage, **training)
        return run_training(open_run(recipe, self.store), self.examples)

    def weights(self, student: TrainedStudent) -> dict[str, torch.Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            self.store.download(student.result.student_name, Path(folder))
            model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype is torch.bfloat16
        return dict(model.named_parameters())

    def checkpoints(self, name: str) -> list[str]:
        folder = f"runs/{name}/training"
        trainings = [f"{folder}/{identity}" for identity in self.store.folders(folder)]
        return [f"{training}/{step}" for training in trainings for step in self.store.folders(training)]


def checkpoint_state(store: Store, checkpoint: str) -> dict[str, torch.Tensor]:
    """Weights and moments of a checkpoint by `STATE/PARAMETER`, as torch's own converter reads them."""
    (writers,) = store.folders(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        dcp_to_torch_save(store.path(f"{checkpoint}/{writers}"), f"{folder}/state")
        loaded: dict[str, torch.Tensor] = torch.load(f"{folder}/state")
    return loaded


def fp32_weights(store: Store, checkpoint: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in checkpoint_state(store, checkpoint).items() if name.startswith("fp32/")}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name].float() - other[name].float()).abs().max().item() for name in one)
