"""Serve a run's trained student over HTTP: until Ctrl-C (`cgd serve`), or for one question at the end of a demo."""

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import openai
import structlog
from ray import serve
from rich.console import Console

from cgd_ray.config.recipe import Recipe
from cgd_ray.config.serving import Access, Replicas
from cgd_ray.errors import CgdError
from cgd_ray.evaluation.gates import require_passed
from cgd_ray.evaluation.questions import QuestionSet, first_question
from cgd_ray.evaluation.run import Student, run_evaluation
from cgd_ray.inference.openai.engine import chat_message
from cgd_ray.inference.vllm.options import VllmEngineOptions, VllmOptions
from cgd_ray.models.resolve import model_identity
from cgd_ray.prompts.conversation import history_of, with_history
from cgd_ray.runtime.cluster import read_cluster
from cgd_ray.runtime.interrupts import interruptibly
from cgd_ray.runtime.logs import quiet_libraries, quiet_vllm
from cgd_ray.serving.keys import Keys, digest_of, new_key
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import Run

log = structlog.get_logger(__name__)


def ask_served_student(run: ResolvedRun, student: str, console: Console) -> None:
    """Serve the student at a free port, ask it the first held-out question, print both students' answers.

    The answer is stored in the run: the same student is not served again for the same question. Skipped if Serve
    already runs on the cluster. `student` is the exported model's name in the store.
    """
    recipe, store, folder = run.recipe, run.store, run.folder
    first = first_question(run)
    rows = first.rows
    asked = {
        "base": run.student_identity,
        "student": model_identity(store.url(student), None, store.storage, "student"),
        "question": rows["prompt"][0].as_py(),
        "history": rows["history"][0].as_py(),
        "evaluation": recipe.evaluation.model_dump(mode="json"),
    }
    served = folder.read_json("served.json")
    if served and served["asked"] == asked:
        log.info("served answer: asked before, no engine is loaded")
    elif _cluster_serves():
        log.warning("Serve runs on this cluster already: no question is asked over HTTP")
        return
    else:
        answers = run_evaluation(run, [first], "base", Student(recipe.student.ref, run.student_identity))
        port, key = _free_port(), new_key()
        with _served(_with_key(recipe, key), store.url(student), "127.0.0.1", port):
            answer = _ask(f"http://127.0.0.1:{port}/v1", key, recipe, first)
        served = {"asked": asked, "base": answers.results[first.name]["text"][0].as_py() or "", "trained": answer}
        folder.write_json("served.json", served)
    console.rule("One held-out question, asked over HTTP")
    for title, text in (
        ("question", asked["question"]),
        ("base student (from the evaluation)", served["base"]),
        ("trained student (served)", served["trained"]),
    ):
        console.print(f"[bold]{title}[/bold]")
        console.print(text, markup=False, highlight=False)


def _with_key(recipe: Recipe, key: str) -> Recipe:
    """Return the recipe with one more key; only its digest goes to Serve."""
    digests = (*recipe.serving.key_digests, digest_of(key))
    serving = recipe.serving.model_copy(update={"key_digests": digests, "no_key": False})
    return recipe.model_copy(update={"serving": serving})


def serve_until_interrupted(recipe: Recipe, store: Store, console: Console) -> None:
    """Serve the run's student at `serving.host` and `serving.port` until SIGINT or SIGTERM.

    If the recipe has no setting for keys, one is made, and shown only on the console.

    Raises:
        CgdError: the run has no trained student yet, the cluster already runs Serve, or the port cannot be used.
    """
    if _cluster_serves():
        raise CgdError(
            "Serve runs on this cluster already, at its own address. Fix: add the student with `serve deploy` "
            "(docs/cluster.md), or end it with `serve shutdown`"
        )
    student = f"runs/{recipe.run.name}/student"
    if not store.exists(f"{student}/manifest.json"):  # written last
        raise CgdError(f"run {recipe.run.name} has no trained student. Fix: run jobs/pipeline.py first")
    if not recipe.serving.force:
        evaluation = Run(store, recipe.run.name).read_json("evaluation.json") or {}
        require_passed(evaluation.get("result", {}).get("gates", []), recipe.run.name)
    host, port = recipe.serving.host, recipe.serving.port
    _require_free(host, port)
    Keys((), recipe.serving.keys_file)  # report a missing file before a model is loaded
    key = None if recipe.serving.no_key or recipe.serving.has_keys else new_key()
    served = _with_key(recipe, key) if key else recipe
    with _served(served, store.url(student), host, port):
        url = f"http://{host}:{port}/v1"
        log.info("serving; Ctrl-C ends it", url=url, model=recipe.serving.model_id)
        _show_how_to_ask(console, url, key, recipe)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


def _show_how_to_ask(console: Console, url: str, key: str | None, recipe: Recipe) -> None:
    question = {"model": recipe.serving.model_id, "messages": [{"role": "user", "content": "What is 7 times 8?"}]}
    with_key = "" if recipe.serving.no_key else '-H "Authorization: Bearer $KEY" '
    lines = [f"KEY={key}   # of this start; serving.keys_file=FILE takes yours"] if key else []
    lines.append(
        f"curl {url}/chat/completions {with_key}-H 'Content-Type: application/json' -d '{json.dumps(question)}'"
    )
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _cluster_serves() -> bool:
    """Whether another Serve instance runs here: this process must neither set its address nor shut it down."""
    return bool(serve.status().proxies)


@contextlib.contextmanager
def _served(recipe: Recipe, model: str, host: str, port: int) -> Iterator[None]:
    log.info("serving the trained student (loads in under a minute on CPU)", port=port)
    with quiet_vllm():
        from cgd_ray.serving.app import build  # takes seconds, which runs without serving avoid

    interruptibly(lambda: serve.start(http_options={"host": host, "port": port}))
    try:
        quiet_libraries()
        interruptibly(lambda: serve.run(build(serve_args(recipe, model)), route_prefix="/"))
        quiet_libraries()  # the application's imports set up their loggers again
        yield
    finally:
        serve.shutdown()


def serve_args(recipe: Recipe, model: str) -> dict[str, Any]:
    """Return the arguments of `serving.app:build` for this recipe."""
    section, engine = recipe.serving, recipe.student.engine
    arguments: dict[str, Any] = {
        "model": model,
        **section.model_dump(include={*Access.model_fields, *Replicas.model_fields}),
        "max_model_len": section.max_model_len,
        "endpoint_url": recipe.storage.endpoint_url,
        "region": recipe.storage.region,
        "anonymous": recipe.storage.anonymous,
    }
    if isinstance(engine, VllmOptions):
        demand = engine.demand(read_cluster(), sharing=section.min_replicas, key="student.engine")
        # The served engine is the evaluated one, except for options that only a run's pool has.
        arguments |= engine.model_dump(include=set(VllmEngineOptions.model_fields))
        arguments |= {"cpus": int(demand.cpus), "max_model_len": section.max_model_len or engine.max_model_len}
    return arguments


def _ask(url: str, key: str, recipe: Recipe, asked: QuestionSet) -> str:
    # The student gets the bare prompt, decoded as in the evaluation.
    [row] = asked.rows.select(["prompt", "history"]).to_pylist()
    with openai.OpenAI(base_url=url, api_key=key, timeout=600) as client:
        started = time.monotonic()
        answer = client.chat.completions.create(
            model=recipe.serving.model_id,
            messages=[chat_message(turn) for turn in with_history(row["prompt"], history_of(row["history"]))],
            **asked.decoding.model_dump(),
        )
    log.info("answered over HTTP", seconds=round(time.monotonic() - started, 1))
    return answer.choices[0].message.content or ""


def _require_free(host: str, port: int) -> None:
    """Refuse a port in use: servers that allow sharing, as Serve's do, would split its requests among them.

    Raises:
        CgdError: the port cannot be bound.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore closed connections in TIME_WAIT
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CgdError(
                f"serving.port {port} on {host} cannot be used: {error.strerror}. Fix: end what listens there, or give "
                "another serving.port"
            ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
