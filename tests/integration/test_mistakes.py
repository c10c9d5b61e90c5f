"""Bad input, given to the command as a user would: one clear line on standard error, a code that is not zero."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cgd_ray.cli import app, run_phases
from tests.unit.training.tiny import write_tiny_model

RECIPE = Path("jobs/recipes/gsm8k-cpu.yaml")
ENDPOINT = "teacher.engine={type: openai, model: m"
ROW = '{"question": "What is 1 + 1?", "answer": "#### 2"}\n'


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(ROW.replace("1 + 1", f"1 + {number}") for number in range(8)))
    return file


@pytest.mark.parametrize(
    ("content", "override", "message"),
    [
        (None, "training.epoch=2", "training.epoch: unknown key; did you mean epochs?"),
        (None, "data.path=/nowhere/rows.jsonl", "data.path /nowhere/rows.jsonl: no such file"),
        ("", "", "no rows"),
        ('{"query": "x"}\n', "", "data.prompt_column 'question': no such column in"),
        (
            ROW + '{"question": 7, "answer": "7"}\n',
            "",
            "rows.jsonl:2: the prompt is int 7, not text. Fix: correct the row",
        ),
        (None, "data.holdout.count=8", "data.holdout.count"),
        (None, "student.model=/nowhere/model", "student.model: /nowhere/model is not a directory with a model"),
        (None, "student.model=demo:smollm3", "student.model: demo model 'smollm3' is unknown"),
        (None, "teacher.engine.model=/nowhere/model", "teacher.engine.model: /nowhere/model is not a directory"),
        (
            None,
            f"{ENDPOINT}, base_url: 'http://127.0.0.1:9', api_key_env: null}}",
            "http://127.0.0.1:9: cannot be reached",
        ),
        (None, f"{ENDPOINT}, api_key_env: CGD_NO_SUCH}}", "environment variable CGD_NO_SUCH is not set"),
        (None, "generation.prompts=/nowhere/prompts", "generation.prompts /nowhere/prompts"),
        (None, "generation.prompts=BROKEN", "template critique.jinja: 'promt' is undefined"),
        (
            None,
            "evaluation.max_tokens=100000",
            "evaluation.max_tokens 100000 leaves no room for a prompt. Fix: lower it, or raise student.engine",
        ),
        (None, f"{ENDPOINT}, api_key_env: sk-SECRET}}", "teacher.engine.api_key_env: String should match pattern"),
        (None, "teacher.engine.replicas=500", "teacher.engine asks for "),
        (None, "training.resources.cpus_per_worker=500", "training with 2 workers asks for 1000 CPUs"),
        (None, "student.engine.chat_template=/nowhere.jinja", "chat_template /nowhere.jinja: neither a template"),
        (None, "student.model=BASE", "student: the model has no chat template (a base model?). Fix: name one in"),
        (
            None,
            "teacher.engine.model=BASE",
            "teacher: the model has no chat template (a base model?). Fix: name one in",
        ),
        (None, "run.root=/proc/nowhere", "run.root /proc/nowhere: cannot be written"),
    ],
)
def test_a_mistake_gets_one_line_and_a_code(
    rows: Path, content: str | None, override: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        rows.write_text(content)
    broken = rows.parent / "prompts"
    broken.mkdir()
    for name in ("critique", "refine", "context"):
        (broken / f"{name}.jinja").write_text("{{ promt }}")
    override = override.replace("BROKEN", str(broken)).replace("BASE", str(base_model(rows.parent / "base")))
    overrides = [f"data.path={rows}", "data.limit=8", "data.holdout.count=2", f"run.root={rows.parent / 'root'}"]
    code = run_phases(RECIPE, [*overrides, *filter(None, [override])])
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("error:", "stopped:"))]
    assert code not in (0, None)
    assert len(errors) == 1
    assert message in errors[0]
    assert "sk-SECRET" not in errors[0]


def base_model(folder: Path) -> Path:
    """A model that knows of no conversations."""
    write_tiny_model(folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def test_who_only_looks_makes_no_root(tmp_path: Path) -> None:
    root = tmp_path / "typo"
    result = CliRunner().invoke(app, ["status", "jobs/recipes/demo.yaml", f"run.root={root}"])
    assert result.exit_code == 2
    assert f"run.root {root}: nothing was run there yet" in result.output
    assert not root.exists()


def test_a_port_in_use_is_named(rows: Path) -> None:
    root = rows.parent / "root"
    student = root / "runs" / "gsm8k-cpu"
    (student / "student").mkdir(parents=True)
    (student / "student" / "manifest.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        overrides = [f"data.path={rows}", f"run.root={root}", f"serving.port={port}", "serving.host=127.0.0.1"]
        result = CliRunner().invoke(app, ["serve", str(RECIPE), *overrides])
    assert result.exit_code != 0
    assert f"serving.port {port} on 127.0.0.1 cannot be used" in result.output


def test_a_recipe_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_phases(Path("nowhere.yaml"), []) != 0
    assert capfd.readouterr().err.startswith("error: nowhere.yaml: ")
