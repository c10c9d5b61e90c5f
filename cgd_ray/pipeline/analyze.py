"""The analysis of a run: scores of its examples by the base and the trained student, and the figures from them."""

from dataclasses import asdict

from cgd_ray.analysis.measures import Measures, measure
from cgd_ray.analysis.run import run_scoring, scoring_of
from cgd_ray.curation.run import curated_tables
from cgd_ray.errors import CgdError
from cgd_ray.evaluation.run import Student
from cgd_ray.pipeline.run import trained_student
from cgd_ray.report.analysis import write_analysis
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.storage.tables import Table


def analyze_run(run: ResolvedRun) -> dict[str, Measures]:
    """Score the run's examples and return the measures by student.

    `trained` is there if the run has a student of these very settings. The measures are also written to `analysis.json`
    and `analysis.md` of the run.

    Raises:
        CgdError: the run's rows were not curated yet, no example has all contexts, or a worker failed.
    """
    examples, _ = curated_tables(run.recipe, run.join())
    if examples.description() is None:
        raise CgdError(f"run {run.recipe.run.name}: nothing is curated yet. Fix: run jobs/generate.py first")
    scoring, section = scoring_of(run, examples), run.recipe.evaluation
    measures = {}
    for name, student in _students(run, examples).items():
        table = run_scoring(run, scoring, name, student)
        measures[name] = measure(table, section.confidence, section.resamples, run.recipe.run.seed)
    run.folder.write_json("analysis.json", {name: asdict(one) for name, one in measures.items()})
    write_analysis(run.folder, measures)
    return measures


def _students(run: ResolvedRun, examples: Table) -> dict[str, Student]:
    students = {"base": Student(run.recipe.student.ref, run.student_identity)}
    if run.recipe.training.enabled:
        from cgd_ray.training.launch.ray_train import encoded_training  # torch: seconds

        if finished := encoded_training(run, examples).finished():
            students["trained"] = trained_student(run, finished.result.student_name)
    return students
