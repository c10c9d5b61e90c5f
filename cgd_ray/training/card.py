"""The model card of an exported student."""

from cgd_ray.config.recipe import Recipe
from cgd_ray.training.encode_table import EncodedExamples


def model_card(recipe: Recipe, encoded: EncodedExamples, identity: str) -> str:
    """README.md with the base model, the method, the data counts, the settings and a note on licences."""
    training, counts = recipe.training, encoded.counts
    method: str = training.method
    if training.method == "mix":
        method += " (" + ", ".join(f"{view} {weight:g}" for view, weight in sorted(training.mix.items())) + ")"
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.dropped.items())) or "none"
    settings = {
        "epochs": training.epochs,
        "rows per optimiser step": training.batch_size,
        "learning rate": f"{training.learning_rate:g}, {training.schedule}, warm-up {training.warmup_fraction:g}",
        "weight decay": training.weight_decay,
        "LoRA": "none, all weights"
        if training.lora is None
        else f"rank {training.lora.rank}, alpha {training.lora.alpha}",
        "gradient clipping": training.gradient_clipping,
        "compute precision": f"{training.precision}, fp32 master weights; saved in bfloat16",
        "longest row": f"{training.max_length} tokens",
        "seed": training_seed(recipe),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
base_model: {recipe.student.model}
tags:
- critique-guided-distillation
---

# {recipe.run.name}

{recipe.student.model} (revision {recipe.student.revision or "as found"}), trained by critique-guided distillation
(arXiv 2505.11628) with the method `{method}`. Critiques and refinements come from the teacher
{recipe.teacher.engine.model}. At inference the student gets the bare prompt in its own chat template.

## Data

{counts.rows} rows with {counts.supervised_tokens} supervised of {counts.total_tokens} tokens; rows left out:
{dropped}. Encoded table `{encoded.table.fingerprint}`, training `{identity}`.

## Settings

| setting | value |
|---|---|
{table}

## Licence

These weights are a derivative of the base model: its licence applies. The texts they were trained on were written by
the teacher: its licence or terms of service may limit the use of models trained on its output.
"""


def training_seed(recipe: Recipe) -> int:
    """`training.seed`, or the run's."""
    return recipe.run.seed if recipe.training.seed is None else recipe.training.seed
