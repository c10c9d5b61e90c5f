"""Training on real parts: real tokenizers, Ray Train with DeepSpeed, kills, S3."""

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
import torch
from ray.actor import ActorHandle
from transformers import AutoTokenizer

from cgd_ray.config.run import StorageSection
from cgd_ray.errors import CgdError
from cgd_ray.methods import METHODS, Contexts
from cgd_ray.prompts.chat_encoder import ChatEncoder, Encoded
from cgd_ray.prompts.conversation import Conversation
from cgd_ray.prompts.templates import load_prompts
from cgd_ray.training.dataset.packing import join, plan_passes
from cgd_ray.training.job import RankJob
from cgd_ray.training.launch import ray_train
from cgd_ray.training.launch.ray_worker import train_on_ray
from cgd_ray.training.launch.training_run import TrainedStudent
from tests.full_gpu import train_on_ray_full
from tests.place import Place, distance
from tests.servers import S3Server, below
from tests.unit.training.tiny import example, write_tiny_model

PROMPTS = load_prompts("default")
WORKER = "ray::RayTrainWorker"


@pytest.fixture(scope="module", autouse=True)
def cluster(s3: S3Server) -> Iterator[None]:
    """Ray on two CPUs, started after the S3 server: its processes inherit the keys."""
    assert s3.environment.items() <= os.environ.items()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "3")  # of ranks that wait for one that failed
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path) -> Place:
    return Place(str(tmp_path_factory.mktemp("root")), tiny_dir)


@pytest.fixture(scope="module")
def uninterrupted(place: Place) -> TrainedStudent:
    return place.train("uninterrupted")


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
    conversations = [
        METHODS[method].conversation(row, Contexts(PROMPTS)) for row in rows for method in ("cgd", "refsft")
    ]
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
        conversation = METHODS["refsft"].conversation(row, Contexts(PROMPTS))
        assert isinstance(conversation, Conversation)
        encoded = encoder.encode(conversation)
        assert isinstance(encoded, Encoded)
        messages = [{"role": "user", "content": row.prompt}]
        sent = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert encoded.input_ids[: encoded.target_start] == sent
        whole = [*messages, {"role": "assistant", "content": row.refinement}]
        official = tokenizer.apply_chat_template(whole, return_dict=False)
        assert official[: len(encoded.input_ids)] == encoded.input_ids


def test_training_learns_and_exports_a_loadable_student(place: Place, uninterrupted: TrainedStudent) -> None:
    assert (uninterrupted.result.steps, uninterrupted.result.rows, uninterrupted.result.dropped) == (12, 22, {})
    assert uninterrupted.result.final_loss < 3.5  # ln(400) = 6.0 at the start
    assert uninterrupted.resumed_from_step is None
    folder = Path(place.store.path(uninterrupted.result.student_name))
    assert "base_model" in (folder / "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(place.model).chat_template
    assert len(place.checkpoints("uninterrupted")) == 2  # training.keep_checkpoints
    assert place.weights(uninterrupted)


def test_the_same_command_again_trains_nothing(place: Place, uninterrupted: TrainedStudent) -> None:
    again = place.train("uninterrupted")
    assert again.reused
    assert again.resumed_from_step is None
    assert (again.result.steps, again.result.final_loss) == (
        uninterrupted.result.steps,
        uninterrupted.result.final_loss,
    )


@pytest.mark.parametrize("where", [pytest.param("local", marks=pytest.mark.long), "s3"])
def test_killed_and_resumed_equals_uninterrupted(
    where: str, place: Place, uninterrupted: TrainedStudent, s3: S3Server
) -> None:
    expected = place.weights(uninterrupted)
    if where == "s3":
        place = Place(s3.url("training"), place.model, StorageSection(endpoint_url=s3.endpoint))
    killer = threading.Thread(target=kill_a_worker_after_a_checkpoint, args=(place, "killed"))
    killer.start()
    with pytest.raises(CgdError, match="rerun the same command to resume"):
        place.train("killed")
    killer.join()
    resumed = place.train("killed")
    assert resumed.resumed_from_step in {3, 6, 9}
    assert (resumed.result.steps, resumed.result.supervised_tokens) == (12, uninterrupted.result.supervised_tokens)
    assert resumed.result.final_loss == pytest.approx(uninterrupted.result.final_loss, abs=1e-6)
    assert distance(place.weights(resumed), expected) == 0
    assert place.train("killed").reused


def kill_a_worker_after_a_checkpoint(place: Place, name: str) -> None:
    """SIGKILL one worker once a checkpoint is whole."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        workers = below(WORKER)
        if any(place.store.exists(f"{step}/progress.json") for step in place.checkpoints(name)) and workers:
            workers[-1].kill()
            return
        time.sleep(0.05)


@pytest.mark.long  # on ranks without Ray, `test_layouts.py` compares all stages
def test_zero_3_gives_the_same_student(place: Place, uninterrupted: TrainedStudent) -> None:
    result = place.train("zero3", zero_stage=3, checkpoint_interval=8)
    assert distance(place.weights(result), place.weights(uninterrupted)) < 1e-3
    assert [step[-2:] for step in place.checkpoints("zero3")] == ["08", "12"]


def train_and_note(starts: Path, job: RankJob, board: ActorHandle) -> object:
    """In the place of `train_on_ray`."""
    with starts.open("a") as file:
        file.write("start\n")
    return train_on_ray(job, board)


def test_a_diverged_training_names_its_rows_and_is_not_tried_again(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_train, "train_on_ray", partial(train_and_note, tmp_path / "starts"))
    with pytest.raises(CgdError, match=r"step \d+ of 12.*not finite.*0{28}") as caught:
        place.train("diverged", learning_rate=1e30, workers=1, max_failures=3)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "starts").read_text() == "start\n"


def test_a_full_gpu_of_one_rank_ends_all_and_is_not_tried_again(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = tmp_path / "starts"
    monkeypatch.setattr(ray_train, "train_on_ray", partial(train_on_ray_full, starts))
    with pytest.raises(CgdError, match=r"^a GPU has no room \(CUDA out of memory\)\. Fix: lower [^\n]*$"):
        place.train("full", workers=2, max_failures=3)
    assert sorted(starts.read_text().split()) == ["0", "1"]


def test_no_rows_is_said_with_the_reasons(place: Place) -> None:
    with pytest.raises(CgdError, match=r"no rows to train on.*longer than training\.max_length"):
        place.train("short", max_length=10)
