"""The whole way on real parts, as a job: S3 root, streaming, ZeRO-2 with two workers, served and asked over HTTP."""

import io
import json
import re
import subprocess
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import s3fs
from transformers import AutoTokenizer

from cgd_ray.prompts.chat_encoder import ChatEncoder
from cgd_ray.prompts.conversation import Turn, with_history
from cgd_ray.stages.stage import prompt_digest
from cgd_ray.storage.fingerprint import parent_digest, text_digest
from cgd_ray.training.dataset.encoded_rows import EncodedRows
from cgd_ray.training.dataset.packing import batches, join, padding, plan_passes
from tests.servers import RayHead, S3Server, engines_left

pytestmark = pytest.mark.timeout(1800)  # two engines on a core each that emulates bfloat16: a quarter of an hour
RECIPE = "jobs/recipes/demo.yaml"
ROOT = "job [1]"  # which is no pattern
ROWS, HELDOUT = 8, 4  # two engines on a core each that emulates bfloat16 make 30 tokens a second
SYSTEM = "You solve problems about numbers, step by step."
SMALL = [
    f"data.system_prompt={SYSTEM}",
    f"data.limit={ROWS}",
    f"data.holdout.count={HELDOUT}",
    "generation.execution=streaming",
    "student.engine.cpus=1",
    "teacher.engine.cpus=1",
    "generation.draft.max_tokens=160",
    "curation.require_correct=false",
    "training.epochs=1",
    "training.batch_size=4",
    "training.workers=2",
    "training.zero_stage=2",
    "evaluation.max_tokens=32",
]


@pytest.fixture(scope="module")
def settings(s3: S3Server) -> list[str]:
    return [*SMALL, f"run.root={s3.url(ROOT)}", f"storage.endpoint_url={s3.endpoint}"]


@pytest.fixture(scope="module")
def job(head: RayHead, settings: list[str]) -> subprocess.CompletedProcess[str]:
    return head.submit("python", "jobs/pipeline.py", RECIPE, *settings)


@pytest.fixture(scope="module")
def manifest(job: subprocess.CompletedProcess[str], bucket: s3fs.S3FileSystem) -> dict[str, Any]:
    assert job.returncode == 0, job.stdout[-5000:] + job.stderr[-2000:]
    content: dict[str, Any] = json.loads(bucket.cat_file(f"bucket/{ROOT}/runs/demo/manifest.json"))
    return content


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(endpoint_url=s3.endpoint, use_listings_cache=False)


def test_every_phase_ran(manifest: dict[str, Any]) -> None:
    assert manifest["generation"]["cost"]["execution"] == "streaming"
    stages = manifest["generation"]["result"]["stages"]
    assert {
        name: count["ok"] + count["truncated"] + count["over_long"] + count["blocked"] for name, count in stages.items()
    } == dict.fromkeys(["draft", "answer", "critique", "refine"], ROWS)
    assert stages["refine"]["ok"] > 0
    assert manifest["training"]["result"]["student"]["steps"] >= 1
    assert manifest["evaluation"]["result"]["sets"]["heldout"]["trained"]["questions"] == HELDOUT
    assert manifest["generation"]["cost"]["spent"]["refine"]["cached_tokens"] > 0


def test_progress_and_results_are_in_the_jobs_log(
    job: subprocess.CompletedProcess[str], manifest: dict[str, Any]
) -> None:
    assert "Evaluation on heldout (bare prompt)" in job.stdout
    assert manifest["run"] in job.stdout
    assert "trained student (served)" in job.stdout
    assert re.search(r"training .*step=\d+/\d+", job.stdout)
    assert len(job.stdout.splitlines()) < 200  # engine logs go to files


def rows(bucket: s3fs.S3FileSystem, stage: str) -> list[dict[str, Any]]:
    parts = bucket.glob(f"bucket/job [[]1]/tables/{stage}/*/*.parquet")
    return [row for part in parts for row in pq.read_table(io.BytesIO(bucket.cat_file(part))).to_pylist()]


def test_texts_belong_together(manifest: dict[str, Any], bucket: s3fs.S3FileSystem) -> None:
    stages = ("prompts", "draft", "answer", "critique", "refine")
    prompts, drafts, answers, critiques, refinements = (
        {row["prompt_id"]: row for row in rows(bucket, stage)} for stage in stages
    )
    assert refinements
    for key, refinement in refinements.items():
        texts = (drafts[key]["text"], critiques[key]["text"], answers[key]["text"])
        assert refinement["parent"] == parent_digest(prompt_digest(prompts[key]), *map(text_digest, texts))
        assert refinement["model"].startswith("demo:qwen2.5-0.5b@")


def test_every_whole_critique_has_a_verdict(manifest: dict[str, Any], bucket: s3fs.S3FileSystem) -> None:
    whole = [row for row in rows(bucket, "critique") if row["status"] == "ok"]
    assert whole
    assert {row["verdict"] for row in whole} <= {"right", "wrong"}


def test_drafts_and_evaluation_send_the_bare_prompt_as_training_encodes_it(
    manifest: dict[str, Any], bucket: s3fs.S3FileSystem, student_dir: Path
) -> None:
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(student_dir), {})
    before = (Turn("system", SYSTEM),)
    prompts = {row["prompt_id"]: with_history(row["prompt"], before) for row in rows(bucket, "prompts")}
    sent = rows(bucket, "draft") + rows(bucket, "evaluation")
    assert len(sent) == ROWS + 2 * HELDOUT
    expected = [len(encoder.prompt_ids(prompts[row["prompt_id"]])) for row in sent]
    assert [row["prompt_tokens"] for row in sent] == expected


def test_supervised_tokens_of_the_jobs_batches_are_the_targets_and_their_end(
    manifest: dict[str, Any], bucket: s3fs.S3FileSystem, student_dir: Path
) -> None:
    # Expected: texts of the stored examples and the tokenizer; nothing of the encoder, which wrote the rows under test.
    tokenizer = AutoTokenizer.from_pretrained(student_dir)
    (name,) = bucket.glob("bucket/job [[]1]/tables/encoded/*/*.parquet")
    table = pq.read_table(io.BytesIO(bucket.cat_file(name)))
    encoded = EncodedRows(table)
    refinements = {row["prompt_id"]: row["refinement"] for row in rows(bucket, "examples")}
    targets = [refinements[key] + "<|im_end|>" for key in table["prompt_id"].to_pylist()]
    assert len(targets) == manifest["training"]["result"]["student"]["rows"] > 1
    for batch in batches(len(encoded), 4, epochs=1, seed=0):
        for members in chain.from_iterable(plan_passes(encoded.lengths[batch].tolist(), 2, capacity=512)):
            numbers = [batch[index] for index in members]
            packed = join([encoded.row(number) for number in numbers]) if numbers else padding()
            assert (packed.input_ids[packed.predicting + 1] == packed.labels).all()
            if numbers:
                assert tokenizer.decode(packed.labels) == "".join(targets[number] for number in numbers)


def test_the_exported_template_has_the_system_prompt(
    manifest: dict[str, Any], bucket: s3fs.S3FileSystem, student_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "student").mkdir()
    for name in bucket.find(f"bucket/{ROOT}/runs/demo/student"):
        if name.endswith((".json", ".jinja", ".txt")):
            (tmp_path / "student" / Path(name).name).write_bytes(bucket.cat_file(name))
    exported, base = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "student", student_dir))
    bare, given = ([turn.as_message() for turn in with_history("x", (Turn("system", SYSTEM),)[:n])] for n in (0, 1))
    assert exported.apply_chat_template(bare, tokenize=False) == base.apply_chat_template(given, tokenize=False)


def test_a_second_job_does_nothing_and_says_so(head: RayHead, manifest: dict[str, Any], settings: list[str]) -> None:
    again = head.submit("python", "jobs/pipeline.py", RECIPE, *settings)
    assert again.returncode == 0, again.stdout[-3000:]
    assert again.stdout.count("no engine is loaded") == 4  # generation, two evaluations, the served answer
    assert "trained student (served)" in again.stdout
    assert "trained now" in again.stdout
    assert re.search(r"trained now\s*│\s*no \(reused\)", again.stdout)


def test_no_key_is_in_any_file_of_the_run_or_the_jobs_log(
    s3: S3Server, job: subprocess.CompletedProcess[str], manifest: dict[str, Any], bucket: s3fs.S3FileSystem
) -> None:
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in job.stdout + job.stderr
    names = bucket.find(f"bucket/{ROOT}")
    assert len(names) > 20
    assert [name for name in names if secret.encode() in bucket.cat_file(name)] == []


def test_a_failing_job_says_why_and_fails(head: RayHead, settings: list[str]) -> None:
    relative = head.submit("python", "jobs/pipeline.py", RECIPE, "run.root=runs")
    assert relative.returncode != 0
    assert "run.root runs is relative" in relative.stdout
    wrong_key = head.submit(
        "env", "AWS_SECRET_ACCESS_KEY=wrong", "python", "jobs/pipeline.py", RECIPE, *settings, timeout=300
    )
    assert wrong_key.returncode != 0
    assert re.search(
        r"error: run\.root s3://bucket/job \[1\]: cannot be written: .*check the endpoint", wrong_key.stdout
    )


def test_the_upload_is_small(head: RayHead) -> None:
    measure = (
        "import pathlib; files = [p for p in pathlib.Path().rglob('*') if p.is_file()];"
        "print('tops', sorted({p.parts[0] for p in files})); print('bytes', sum(p.stat().st_size for p in files))"
    )
    output = head.submit("python", "-c", measure).stdout
    tops = re.search(r"tops (\[.*\])", output)
    size = re.search(r"bytes (\d+)", output)
    assert tops is not None
    assert size is not None
    assert "'cgd_ray'" in tops[1]
    assert "tests" not in tops[1]
    assert int(size[1]) < 2_000_000


@pytest.mark.usefixtures("manifest")
def test_no_engine_outlives_its_job() -> None:
    assert engines_left() == []
