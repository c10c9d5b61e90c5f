"""Print the estimated cost of a run before it is paid for."""

from rich.console import Console

from cgd_ray.config.training import TrainingSection
from cgd_ray.estimation.evaluation import EvaluationEstimate
from cgd_ray.estimation.generation import Estimate, StageEstimate
from cgd_ray.estimation.interval import Interval, sum_of
from cgd_ray.estimation.training import TrainingEstimate
from cgd_ray.evaluation.power import smallest_difference
from cgd_ray.report.cells import Cells, rich_table
from cgd_ray.training.flops import peak_flops

_MFU = 0.4
_POWER = 0.8
_DISCORDANT = (0.1, 0.2, 0.33)  # shares of the questions that only one of two students answers correctly
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def print_estimate(estimate: Estimate, console: Console) -> None:
    """Print tokens, time, GPU-hours and money per stage, with 95 % intervals."""
    head = ["stage", "rows to do", "prompt tok", "completion tok", "time", "GPU-hours", "money"]
    rows: Cells = [head, *(_row(name, stage) for name, stage in estimate.stages.items())]
    console.print(rich_table(f"After a probe of {estimate.probed} rows (95 % intervals)", rows))
    stages = estimate.stages.values()
    money = [stage.money for stage in stages if stage.money]
    console.print(
        f"in all: {_time(estimate.hours)} without loading"
        + (" (student and teacher at the same time)" if estimate.overlap else "")
        + f", {_interval(sum_of([stage.gpu_hours for stage in stages]))} GPU-hours"
        + (f", {_interval(sum_of(money))} of money" if money else "; give --gpu-hour-price for what they cost")
    )
    if estimate.unmeasured:
        console.print(f"not counted, since no row of the probe came to it: {', '.join(estimate.unmeasured)}")
    if estimate.starved:
        console.print(
            f"{estimate.probed} rows did not fill the engines, so the run will be faster than this; a probe of more "
            "rows is closer"
        )


def print_power(name: str, questions: int, confidence: float, console: Console) -> None:
    """Print the smallest difference between two students that the held-out questions can show."""
    shown = [
        f"{100 * difference:.1f} points if two students differ on {share:.0%}"
        for share in _DISCORDANT
        if (difference := smallest_difference(questions, share, confidence, _POWER)) is not None
    ]
    found = ", ".join(shown) or "none, even if two students differ on a third of them"
    console.print(
        f"smallest difference that {questions} questions of {name} show with a power of {_POWER:.0%}: {found}"
    )


def print_evaluation(estimate: EvaluationEstimate | None, console: Console) -> None:
    """Print answers, tokens and time."""
    if estimate is None:
        console.print("evaluation: there is no draft to tell it from")
        return
    time = f", {_time(estimate.hours)}" if estimate.hours else ""
    time += f", {_interval(estimate.gpu_hours)} GPU-hours" if estimate.gpu_hours else ""
    console.print(
        f"evaluation: {_number(estimate.answers)} answers to {_number(estimate.questions)} questions "
        f"(evaluation.limit), as long as the drafts: {_interval(estimate.prompt_tokens)} prompt tok, "
        f"{_interval(estimate.completion_tokens)} completion tok{time}"
    )


def print_training(estimate: TrainingEstimate | None, training: TrainingSection, console: Console) -> None:
    """Print rows, steps, tokens, hours, and a worker's memory in each layout."""
    if estimate is None:
        console.print("training: curation or encoding kept none of these rows, so nothing is told of it")
        return
    figures = {
        "rows after curation": estimate.rows,
        "optimiser steps": estimate.steps,
        "tokens": estimate.total_tokens,
        "supervised tokens": estimate.supervised_tokens,
    }
    cells: Cells = [["training", ""], *([name, _number(value)] for name, value in figures.items())]
    console.print(f"training, told from {estimate.sampled} generated rows that it would take:")
    console.print(rich_table("Training", [*cells, _hours(estimate, training)]))
    head = ["ZeRO stage", "offload", "GiB on a device", "with gradient checkpointing", "on its host", ""]
    layouts: Cells = [head]
    for (stage, offload), needed in estimate.memory.items():
        is_chosen = (stage, offload) == (training.zero_stage, training.offload)
        places = (needed.device, needed.device - estimate.saved[stage, offload], needed.host)
        sizes = [f"{size / 2**30:.1f}" for size in places]
        layouts.append([str(stage), offload, *sizes, "this recipe" if is_chosen else ""])
    console.print(
        rich_table(f"Memory of each of {training.workers} workers, without the CUDA context (about 0.5 GiB)", layouts)
    )
    if estimate.export is not None:
        console.print(f"the export takes {estimate.export / 2**30:.1f} GiB more on the host of the first worker")


def _hours(estimate: TrainingEstimate, training: TrainingSection) -> list[str]:
    kind = training.resources.accelerator_type
    peak = peak_flops(kind) if kind else None
    if peak is None or estimate.flops is None:
        if estimate.flops is None:
            return ["FLOPs", "not known"]
        return ["FLOPs", f"{estimate.flops:.3g} (hours: with a known training.resources.accelerator_type)"]
    hours = estimate.flops / (peak * training.workers * _MFU) / 3600
    return [f"hours on {training.workers} {kind}", f"{hours:.3g} at {_MFU:.0%} of their peak, which nobody measured"]


def _row(name: str, stage: StageEstimate) -> list[str]:
    money = "-" if stage.money is None else _interval(stage.money)
    tokens = [_interval(stage.prompt_tokens), _interval(stage.completion_tokens)]
    return [name, _number(stage.rows), *tokens, _time(stage.hours), _interval(stage.gpu_hours), money]


def _time(hours: Interval) -> str:
    if hours.value >= 1:
        return f"{_interval(hours)} h"
    return f"{_interval(hours.times(60))} min" if hours.value >= 1 / 60 else f"{_interval(hours.times(3600))} s"


def _interval(found: Interval) -> str:
    if found.low == found.high:
        return _number(found.value)
    return f"{_number(found.value)} [{_number(found.low)}, {_number(found.high)}]"


def _number(value: float) -> str:
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
