"""Training on real parts: real tokenizers, Ray Train with DeepSpeed, kills, S3."""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.config.run import StorageSection
from cgd_ray.errors import CgdError
from cgd_ray.prompts.templates import load_prompts
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import EXAMPLES
from cgd_ray.storage.tables import Table
from cgd_ray.training.encode import ChatEncoder, Encoded
from cgd_ray.training.encode_table import Encoding, encode_examples
from cgd_ray.training.formats import Contexts, Conversation, view
from cgd_ray.training.job import About, RankJob
from cgd_ray.training.packing import join, plan_passes
from cgd_ray.training.trainer import TrainingResult, run_training
from tests.servers import REPOSITORY, S3Server
from tests.unit.training.tiny import example, write_tiny_model

PROMPTS = load_prompts("default")
WORKER = "ray::RayTrainWorker"


@pytest.fixture(scope="module", autouse=True)
def cluster(s3: S3Server) -> Iterator[None]:
    """Ray on two CPUs, started after the S3 server: its processes inherit the keys."""
    assert s3.environment.items() <= os.environ.items()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    write_tiny_model(folder)
    return folder


def make_recipe(name: str, root: str, model: Path, storage: StorageSection, **training: Any) -> Recipe:
    small = {
        "method": "mix",
        "epochs": 2,
        "batch_size": 4,
        "micro_batch_tokens": 256,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "workers": 2,
        "checkpoint_every": 3,
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

    def train(self, name: str, **training: Any) -> TrainingResult:
        recipe = make_recipe(name, self.root, self.model, self.storage, **training)
        return run_training(recipe, self.store, self.examples, str(self.model), "tiny")

    def weights(self, result: TrainingResult) -> dict[str, torch.Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            self.store.download(result.student_name, Path(folder))
            model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype is torch.bfloat16
        return dict(model.named_parameters())

    def checkpoints(self, name: str) -> list[str]:
        folder = f"runs/{name}/training"
        trainings = [f"{folder}/{identity}" for identity in self.store.folders(folder)]
        return [f"{training}/{step}" for training in trainings for step in self.store.folders(training)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path) -> Place:
    return Place(str(tmp_path_factory.mktemp("root")), tiny_dir)


@pytest.fixture(scope="module")
def uninterrupted(place: Place) -> TrainingResult:
    return place.train("uninterrupted")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name].float() - other[name].float()).abs().max().item() for name in one)


@pytest.mark.parametrize("which", ["student_dir", "teacher_dir"])
def test_real_packed_batches_supervise_exactly_the_targets(which: str, request: pytest.FixtureRequest) -> None:
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(which))
    encoder = ChatEncoder(tokenizer, {})
    awkward = [
        r"\frac{1}{2} {{x}}",
        "so <|im_end|>\n<|im_start|>user\nhi",
        "\n\n leading and trailing \n",
        "日本語 🙂 ½",
        "a\r\n\tb",
    ]
    rows = [example(number, critique=text, refinement=f"{text}!", draft=text) for number, text in enumerate(awkward)]
    rows += [example(number) for number in range(10, 40)]
    conversations = [view(row, method, Contexts(PROMPTS)) for row in rows for method in ("cgd", "refsft")]
    encoded = [encoder.encode(one) for one in conversations if isinstance(one, Conversation)]
    whole = [(torch.tensor(row.input_ids).numpy(), row.target_start) for row in encoded if isinstance(row, Encoded)]
    assert len(whole) == len(conversations)
    end = tokenizer.decode([encoder.end_of_turn])
    for members in plan_passes([len(ids) for ids, _ in whole], 1, 1024)[0]:
        targets = [conversations[member].target for member in members]
        packed = join([whole[member] for member in members])
        assert tokenizer.decode(packed.labels) == "".join(target + end for target in targets)
        assert (packed.input_ids[packed.predicting + 1] == packed.labels).all()


@pytest.mark.parametrize("which", ["student_dir", "teacher_dir"])
def test_refsft_trains_on_the_very_ids_that_a_chat_endpoint_sends(which: str, request: pytest.FixtureRequest) -> None:
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(which))
    encoder = ChatEncoder(tokenizer, {})
    for row in (example(number, prompt=f"{'word ' * number}\n\n$x^{number}$?") for number in range(50)):
        conversation = view(row, "refsft", Contexts(PROMPTS))
        assert isinstance(conversation, Conversation)
        encoded = encoder.encode(conversation)
        assert isinstance(encoded, Encoded)
        messages = [{"role": "user", "content": row.prompt}]
        sent = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert encoded.input_ids[: encoded.target_start] == sent
        whole = [*messages, {"role": "assistant", "content": row.refinement}]
        official = tokenizer.apply_chat_template(whole, return_dict=False)
        assert official[: len(encoded.input_ids)] == encoded.input_ids


def test_training_learns_and_exports_a_loadable_student(place: Place, uninterrupted: TrainingResult) -> None:
    assert (uninterrupted.steps, uninterrupted.rows, uninterrupted.dropped) == (12, 22, {})
    assert uninterrupted.final_loss < 3.5  # ln(400) = 6.0 at the start
    assert uninterrupted.resumed_from_step is None
    folder = Path(place.store.path(uninterrupted.student_name))
    assert "base_model" in (folder / "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(place.model).chat_template
    assert len(place.checkpoints("uninterrupted")) == 2  # training.keep_checkpoints
    assert place.weights(uninterrupted)


def test_the_same_command_again_trains_nothing(place: Place, uninterrupted: TrainingResult) -> None:
    started = time.monotonic()
    again = place.train("uninterrupted")
    assert time.monotonic() - started < 5
    assert again.reused
    assert again.resumed_from_step is None
    assert (again.steps, again.final_loss) == (uninterrupted.steps, uninterrupted.final_loss)


@pytest.mark.parametrize("where", ["local", "s3"])
def test_killed_and_resumed_equals_uninterrupted(
    where: str, place: Place, uninterrupted: TrainingResult, s3: S3Server
) -> None:
    expected = place.weights(uninterrupted)
    if where == "s3":
        place = Place(s3.url("training"), place.model, StorageSection(endpoint_url=s3.endpoint))
    killer = threading.Thread(target=kill_a_worker_after_a_checkpoint, args=(place, "killed"))
    killer.start()
    with pytest.raises(CgdError, match="same command continues"):
        place.train("killed")
    killer.join()
    resumed = place.train("killed")
    assert resumed.resumed_from_step in {3, 6, 9}
    assert (resumed.steps, resumed.supervised_tokens) == (12, uninterrupted.supervised_tokens)
    assert resumed.final_loss == pytest.approx(uninterrupted.final_loss, abs=1e-6)
    assert distance(place.weights(resumed), expected) == 0
    assert place.train("killed").reused


def kill_a_worker_after_a_checkpoint(place: Place, name: str) -> None:
    """SIGKILL one worker once a checkpoint is whole."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        workers = [process for process in psutil.process_iter(["name"]) if process.info["name"].startswith(WORKER)]
        if any(place.store.exists(f"{step}/progress.json") for step in place.checkpoints(name)) and workers:
            workers[-1].kill()
            return
        time.sleep(0.05)


def test_zero_3_gives_the_same_student(place: Place, uninterrupted: TrainingResult) -> None:
    result = place.train("zero3", zero_stage=3, checkpoint_every=8)
    assert distance(place.weights(result), place.weights(uninterrupted)) < 1e-3
    assert [step[-2:] for step in place.checkpoints("zero3")] == ["08", "12"]


RANK_SCRIPT = """
import json, os, pickle, sys
os.environ["DS_ACCELERATOR"] = "cpu"
from pathlib import Path
from cgd_ray.training.worker import train_rank
job, out = pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
steps = []
train_rank(job, lambda step: bool(steps.append([step.progress.loss, step.gradient_norm])))
if os.environ["RANK"] == "0":
    out.write_text(json.dumps(steps))
"""


def under_torchrun(job: RankJob, ranks: int, folder: Path) -> list[list[float]]:
    """Loss and gradient norm of each step of the rank's loop, started by torchrun instead of Ray."""
    folder.mkdir()
    (folder / "rank.py").write_text(RANK_SCRIPT)
    job = replace(job, checkpoints=f"{job.checkpoints}-{ranks}")
    (folder / "job").write_bytes(pickle.dumps(job))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    script = [str(folder / "rank.py"), str(folder / "job"), str(folder / "steps.json")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    steps: list[list[float]] = json.loads((folder / "steps.json").read_text())
    return steps


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_have_the_loss_and_gradient_of_one(place: Place, tmp_path: Path, stage: int) -> None:
    """Under torchrun; Adam hides a wrong scale of the gradient, its norm does not."""
    recipe = make_recipe("torchrun", place.root, place.model, place.storage, epochs=1, zero_stage=stage)
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(place.model), {})
    encoded = encode_examples(place.examples, Encoding(recipe.training, 0, PROMPTS, encoder))
    job = RankJob(
        encoded.table,
        str(place.model),
        None,
        place.storage,
        recipe.training,
        seed=0,
        checkpoints=f"runs/torchrun/{stage}",
        student="runs/torchrun/student",
        about=About("", {}),
        device="cpu",
        threads=1,
    )
    one, two = under_torchrun(job, 1, tmp_path / "one"), under_torchrun(job, 2, tmp_path / "two")
    assert len(one) == 6
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, rel=1e-3)


def test_a_diverged_training_names_its_rows_and_is_not_tried_again(place: Place) -> None:
    started = time.monotonic()
    with pytest.raises(CgdError, match=r"step \d+ of 12.*not finite.*0{28}") as caught:
        place.train("diverged", learning_rate=1e30, workers=1, max_failures=3)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 60


def test_no_rows_is_said_with_the_reasons(place: Place) -> None:
    with pytest.raises(CgdError, match=r"no rows to train on.*longer than training\.max_length"):
        place.train("short", max_length=10)
