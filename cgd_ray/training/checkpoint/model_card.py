"""The model card of an exported student."""

from cgd_ray.config.recipe import Recipe
from cgd_ray.config.training import LoraSection
from cgd_ray.methods import Target, targets_of
from cgd_ray.redaction import redact
from cgd_ray.training.dataset.encode import EncodedExamples

_LEARNT: dict[Target, str] = {
    "answer": "answers of the teacher {teacher}",
    "critique": "critiques of the teacher {teacher}",
    "reference": "the references of the data set",
    "refine": "refined answers of the teacher {teacher}",
}
_LICENCE_OF_DATA = "Texts that they learnt are the data set's: its licence applies, too."
_LICENCE_OF_TEACHER = (
    "Texts that they were trained on were written by the teacher: its licence or terms of service may limit the use of "
    "models trained on its output."
)


def model_card(recipe: Recipe, encoded: EncodedExamples, identity: str) -> str:
    """Return README.md with the base model, the method, the data counts, the settings and a note on licences."""
    training, counts = recipe.training, encoded.counts
    method: str = training.method
    if training.method == "mix":
        method += " (" + ", ".join(f"{view} {weight:g}" for view, weight in sorted(training.mix.items())) + ")"
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.dropped.items())) or "none"
    settings = {
        "epochs": training.epochs,
        "rows per optimiser step": training.batch_size,
        "learning rate": f"{training.learning_rate:g}, {training.lr_scheduler}, warm-up {training.warmup_fraction:g}",
        "weight decay": training.weight_decay,
        "LoRA": _adapter(training.lora),
        "gradient clipping": training.max_grad_norm,
        "compute precision": f"{training.precision}, fp32 master weights; saved in bfloat16",
        "longest row": f"{training.max_length} tokens",
        "seed": recipe.training_seed,
    }
    targets = targets_of(training.own_methods)
    learnt = " and ".join(_LEARNT[text].format(teacher=recipe.teacher.engine.model) for text in sorted(targets))
    licences = [_LICENCE_OF_DATA] if "reference" in targets else []
    licences += [_LICENCE_OF_TEACHER] if targets != {"reference"} else []
    system = ", which begins with the system prompt of its training" if recipe.data.system_prompt else ""
    table = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    card = f"""---
library_name: transformers
pipeline_tag: text-generation
base_model: {recipe.student.model}
tags:
- critique-guided-distillation
---

# {recipe.run.name}

{recipe.student.model} (revision {recipe.student.revision or "as found"}), trained with the method `{method}`, one of
those that critique-guided distillation (arXiv 2505.11628) is made of or compared with. It learnt {learnt}.
At inference it gets the bare prompt in its own chat template{system}.

## Data

{counts.rows} rows with {counts.supervised_tokens} supervised of {counts.total_tokens} tokens; rows left out:
{dropped}. Encoded table `{encoded.table.fingerprint}`, training `{identity}`.

## Settings

| setting | value |
|---|---|
{table}

## Licence

These weights are a derivative of the base model: its licence applies. {" ".join(licences)}
"""
    return redact(card)  # model names may be URLs


def _adapter(lora: LoraSection | None) -> str:
    if lora is None:
        return "none, all weights"
    return f"rank {lora.rank}, alpha {lora.alpha}" + (f", beside {lora.quantization}" if lora.quantization else "")
