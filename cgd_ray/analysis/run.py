"""Score the examples of a run under all contexts, with the base and the trained student; finished parts are reused."""

from collections.abc import Iterator
from dataclasses import dataclass

import ray
import ray.exceptions
import structlog
from ray.util import ActorPool

from cgd_ray.analysis.contexts import CONTEXTS
from cgd_ray.config.recipe import Recipe
from cgd_ray.errors import RERUN, CgdError
from cgd_ray.evaluation.run import Student
from cgd_ray.inference.options import ModelRef
from cgd_ray.methods import Contexts, Example
from cgd_ray.models.resolve import local_model
from cgd_ray.prompts.chat_encoder import ChatEncoder, Encoded
from cgd_ray.prompts.conversation import Conversation
from cgd_ray.redaction import one_line
from cgd_ray.runtime.interrupts import interruptibly
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.lease import hold_lease
from cgd_ray.storage.schemas import SCORES
from cgd_ray.storage.tables import Table
from cgd_ray.training.dataset.encode import tokenizer_digest
from cgd_ray.training.dataset.shuffled_critiques import with_others
from cgd_ray.training.launch.resources import WorkerResources, check_room, worker_resources

log = structlog.get_logger(__name__)
_FORMAT = 1  # increases when the scores of an unchanged input change, such as with a context's wording
_TYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Scoring:
    """Everything that determines the scores of an example, but for the model."""

    examples: Table
    contexts: Contexts
    encoder: ChatEncoder
    seed: int
    max_length: int
    dtype: str

    def table(self, model: str) -> Table:
        """Return the table of one model's scores."""
        return Table(self.examples.store, "scores", fingerprint(self.describe(model)), SCORES)

    def describe(self, model: str) -> dict[str, object]:
        """Return the content of the table's fingerprint."""
        prompts = self.contexts.prompts
        return {
            "stage": "scores",
            "format": _FORMAT,
            "examples": self.examples.fingerprint,
            "model": model,
            "contexts": sorted(CONTEXTS),
            "context": prompts.context_source,
            "again": prompts.again_source if self.contexts.multi_turn else None,
            "tokenizer": tokenizer_digest(self.encoder.tokenizer),
            "template_arguments": self.encoder.template_arguments,
            "seed": self.seed,
            "max_length": self.max_length,
            "dtype": self.dtype,
        }

    def encoded(self, part: str) -> Iterator[tuple[dict[str, object], Encoded]]:
        """Yield key and ids of each row of a part under each context.

        A row that lacks one of the contexts, or is longer than `max_length` in one, is left out under all: contexts
        are compared on the same rows.
        """
        examples = [Example.from_row(row) for row in self.examples.read([part]).to_pylist()]
        for example in with_others(examples, self.seed):
            rows = {name: self._encode(example, name) for name in CONTEXTS}
            if all(rows.values()):
                for name, row in rows.items():
                    if row:
                        key = {"prompt_id": example.prompt_id, "sample": example.sample, "context": name}
                        yield key, row

    def _encode(self, example: Example, context: str) -> Encoded | None:
        turns = CONTEXTS[context](example, self.contexts)
        if turns is None:
            return None
        row = self.encoder.encode(Conversation(turns, example.refinement))
        return row if isinstance(row, Encoded) and len(row.input_ids) <= self.max_length else None


def scoring_of(run: ResolvedRun, examples: Table) -> Scoring:
    """Return how the examples of a run are scored."""
    recipe, training = run.recipe, run.recipe.training
    contexts = Contexts(run.templates, training.context == "multi-turn")
    dtype = _TYPES[training.precision]
    return Scoring(examples, contexts, run.encoder, recipe.training_seed, training.max_length, dtype)


def run_scoring(run: ResolvedRun, scoring: Scoring, name: str, student: Student) -> Table:
    """Return the table of one student's scores; missing parts are made by up to `training.workers` workers.

    Raises:
        ConfigError: the workers do not fit on the cluster.
        CgdError: a worker cannot load the model, or is lost too often.
    """
    table = scoring.table(student.identity)
    with hold_lease(run.store, table.folder, wait=True):
        done = {part.split("-")[1] for part in table.parts()}
        parts = enumerate(scoring.examples.parts())
        lacking = [(number, part) for number, part in parts if f"{number:06d}" not in done]
        if not lacking:
            log.info(f"scores of the {name} student: nothing to do")
            return table
        table.describe(scoring.describe(student.identity))
        training = run.recipe.training
        training = training.model_copy(update={"workers": min(training.workers, len(lacking)), "min_workers": None})
        resources = worker_resources(training)
        check_room(training, resources, is_next=True)
        log.info(f"scoring with the {name} student", parts=len(lacking), workers=training.workers)
        actors = [_worker(run.recipe, scoring, table, student.model, resources) for _ in range(training.workers)]
        try:
            for rows in _score_all(actors, lacking):
                log.info("scored", student=name, rows=rows)
        finally:
            for actor in actors:
                ray.kill(actor)
    return table


def _score_all(actors: list[ray.actor.ActorHandle], parts: list[tuple[int, str]]) -> Iterator[int]:
    """Yield the number of rows of each part, as it is done."""
    pool = ActorPool(actors)
    for part in parts:
        pool.submit(lambda actor, item: actor.score_part.remote(*item), part)
    while pool.has_next():
        try:
            yield interruptibly(pool.get_next_unordered)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # the one-line error, without the worker's traceback
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise CgdError(f"analysis: a worker failed: {one_line(cause, 500)}. Fix: {RERUN}") from error


def _worker(
    recipe: Recipe, scoring: Scoring, table: Table, model: ModelRef, resources: WorkerResources
) -> ray.actor.ActorHandle:
    actor = ray.remote(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        accelerator_type=recipe.training.resources.accelerator_type,
        max_restarts=3,
        max_task_retries=3,
    )(ScoringWorker)
    return actor.remote(recipe, scoring, table, model, resources)


class ScoringWorker:
    """Scores parts of the examples with one model; an actor."""

    def __init__(
        self, recipe: Recipe, scoring: Scoring, table: Table, model: ModelRef, resources: WorkerResources
    ) -> None:
        """Load the model.

        Raises:
            ConfigError: it does not exist.
        """
        from cgd_ray.analysis.scoring import Scorer  # torch: not in the driver

        folder = local_model(model.name, model.revision, recipe.storage)
        tokens = recipe.training.micro_batch_tokens or scoring.max_length
        self._scorer = Scorer(folder, resources.device, scoring.dtype, resources.cpus, tokens)
        self._scoring, self._table = scoring, table

    def score_part(self, number: int, part: str) -> int:
        """Write the scores of one part of the examples; return the number of rows."""
        keys, rows = [], []
        for key, row in self._scoring.encoded(part):
            keys.append(key)
            rows.append(row)
        scores = self._scorer.score(rows)
        scored = [
            {**key, "nll": one.nll.tolist(), "entropy": one.entropy.tolist()}
            for key, one in zip(keys, scores, strict=True)
        ]
        self._table.write_part(f"part-{number:06d}", scored)  # also without rows: the part is done
        return len(scored) // len(CONTEXTS)
