"""(d) distilabel's OpenAI client against vLLM's server. Setting: `staged` (one at a time) or `streaming` (both)."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.generation.work import IN_FLIGHT, KV_CACHE_GIB, MAX_MODEL_LEN, Clock, Outcome, Task, arguments
from tests.servers import free_port

CHAIN = Path(__file__).with_name("distilabel_chain.py")
REPOSITORY = Path(__file__).parents[2]


@contextlib.contextmanager
def server(model: str, dtype: str, cores: str) -> Iterator[str]:
    """Run vLLM's server on these cores; yields its URL once it is healthy."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
    command += ["--served-model-name", "model", "--dtype", dtype, "--max-model-len", str(MAX_MODEL_LEN)]
    command += ["--enforce-eager", "--enable-prefix-caching", "--max-num-seqs", str(IN_FLIGHT)]
    command += ["--generation-config", "vllm", "--host", "127.0.0.1", "--no-enable-log-requests"]
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIB}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the server of {model} ended with {process.returncode}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def chain(task: Task, folder: Path, urls: dict[str, str], clock: Clock) -> None:
    """Run one distilabel pipeline over the stages that have a URL, in its own environment."""
    (folder / "urls.json").write_text(json.dumps(urls))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    with clock:
        command = [task.distilabel_python, str(CHAIN), sys.argv[1], str(folder)]
        subprocess.run(command, check=True, env=environment)


def main() -> None:
    """Run all three stages."""
    task, out = arguments()
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.json").write_text(json.dumps([{**row, "whole": True} for row in task.rows]))
        if task.setting == "streaming":
            with server(task.student, task.dtype, "0") as student, server(task.teacher, task.dtype, "1") as teacher:
                chain(task, folder, {"draft": student, "critique": teacher, "refine": teacher}, clock)
        else:
            with server(task.student, task.dtype, "0-1") as student:
                chain(task, folder, {"draft": student}, clock)
            with server(task.teacher, task.dtype, "0-1") as teacher:
                chain(task, folder, {"critique": teacher, "refine": teacher}, clock)
        rows = json.loads((folder / "rows.json").read_text())
    texts = {row["prompt_id"]: {s: row[s] for s in ("draft", "critique", "refine") if row.get(s)} for row in rows}
    Outcome(texts, clock.seconds).write(out)


if __name__ == "__main__":
    main()
