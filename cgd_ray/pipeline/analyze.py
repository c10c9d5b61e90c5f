"""The analysis of a run: scores of its examples by the base and the trained student, and the figures from them."""

import json
from dataclasses import asdict

import structlog

from cgd_ray.analysis.measures import Measures, measure
from cgd_ray.analysis.run import run_scoring, scoring_of
from cgd_ray.curation.run import curated_tables
from cgd_ray.errors import CgdError
from cgd_ray.inference.options import ModelRef
from cgd_ray.models.resolve import model_identity
from cgd_ray.report.analysis import write_analysis
from cgd_ray.stages.resolved import ResolvedRun

log = structlog.get_logger(__name__)


def analyze_run(run: ResolvedRun) -> dict[str, Measures]:
    """Score the run's examples and return the measures by student; `trained` only if the run has a student.

    They are also written to `analysis.json` and `analysis.md` of the run.

    Raises:
        CgdError: the run's rows were not curated yet, or no example has all contexts.
    """
    examples, _ = curated_tables(run.recipe, run.join())
    if examples.description() is None:
        raise CgdError(f"run {run.recipe.run.name}: nothing is curated yet. Fix: run jobs/generate.py first")
    scoring, section = scoring_of(run, examples), run.recipe.evaluation
    measures = {}
    for name, (model, identity) in _students(run).items():
        table = run_scoring(run, scoring, name, model, identity)
        if not table.parts():
            raise CgdError(
                "analysis: no example has all contexts (another prompt's critique with its verdict, a refinement that "
                "states its result, no more than training.max_length tokens). Fix: generate more rows"
            )
        measures[name] = measure(table, section.confidence, section.resamples, run.recipe.run.seed)
    run.folder.write_json("analysis.json", {name: asdict(one) for name, one in measures.items()})
    write_analysis(run.folder, measures)
    return measures


def _students(run: ResolvedRun) -> dict[str, tuple[ModelRef, str]]:
    """Return model and identity of the base student, and of the trained one if there is one."""
    students = {"base": (run.recipe.student.ref, run.student_identity)}
    manifest = f"runs/{run.recipe.run.name}/student/manifest.json"
    if run.store.exists(manifest):
        name = json.loads(run.store.read(manifest))["result"]["student_name"]
        path = run.store.url(name)
        students["trained"] = (ModelRef(path), model_identity(path, None, run.store.storage, "student"))
    return students
