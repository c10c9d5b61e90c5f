"""Training and serving of the student."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cgd_ray.config.base import Section
from cgd_ray.config.places import PlainUrl
from cgd_ray.config.serving import Access, Replicas, is_loopback
from cgd_ray.methods import MethodName

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
MethodOrMix = Literal[MethodName, "mix"]


class TrainingResources(Section):
    """Ray resources of one training worker."""

    cpus_per_worker: PositiveInt | None = None
    """Null: on CPU an equal share of the node's cores; beside a GPU up to 8, as many as leave room for all workers; 1
    while no node with a GPU runs."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | None = None
    """None: 1 where the installed packages compute on GPUs (`make setup DEVICE=gpu`), else 0."""
    accelerator_type: str | None = None

    @model_validator(mode="after")
    def _accelerator_is_used(self) -> Self:
        if self.gpus_per_worker == 0 and self.accelerator_type is not None:
            raise ValueError(
                f"accelerator_type {self.accelerator_type} with gpus_per_worker 0. Fix: leave one of them out"
            )
        return self


class LoraSection(Section):
    """LoRA: the student stays frozen; a low-rank product beside each layer is trained."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    """Scale of the product: alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Names of the layers, for instance `[q_proj, v_proj]`; `all-linear` is all but the output layer."""
    quantization: Literal["nf4"] | None = None
    """QLoRA (arXiv 2305.14314): the frozen student in 4 bits (bitsandbytes) while it is trained. The adapter is then
    merged into the student as it is, not into its 4-bit form."""


class TrackingSection(Section):
    """Where the metrics of each optimiser step go, beside the log."""

    tensorboard: bool = True
    """Event files in `runs/NAME/tensorboard` of the root; on S3 they appear with each checkpoint."""
    mlflow: bool = False
    mlflow_uri: PlainUrl | None = None
    """Tracking server or store; None is the folder `mlflow` of a local root. Credentials come from the environment."""
    mlflow_experiment: str = "cgd-ray"


class TrainingSection(Section):
    """Ray Train with DeepSpeed ZeRO over the curated examples."""

    enabled: bool = True
    method: MethodOrMix = "cgd"
    """What the student is shown of a row, and what it learns (docs/methods.md)."""
    mix: Annotated[dict[MethodName, Annotated[float, Field(gt=0)]], Field(min_length=1)] = {"cgd": 1.0, "refsft": 1.0}
    """Weights of the methods of `mix`: each row is trained with one of them, drawn by the seed."""
    compared_with: list[MethodOrMix] = []
    """Methods that are trained on the same rows: a row that one of them cannot use is dropped for all (`cgd compare`
    sets this)."""
    context: Literal["single-turn", "multi-turn"] = "single-turn"
    """Form of contexts with a draft: one user turn (as in the paper), or the draft as the assistant's turn and the
    critique as the user's reply."""
    epochs: PositiveInt = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    batch_size: PositiveInt = 64
    """Rows of one optimiser step, over all workers, packed inside the step."""
    micro_batch_tokens: PositiveInt = 4096
    """Tokens of one packed forward pass on one worker (a longer single row is its own pass)."""
    max_length: PositiveInt = 4096
    """Rows with more tokens are dropped and counted, never cut."""
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: Fraction = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute type. `auto`: bf16 on GPUs and on CPUs that multiply it natively (AVX512-BF16, AMX), else fp32. Master
    weights and optimiser states are fp32 in any case."""
    loss_spike: Annotated[float, Field(gt=0)] | None = 4.0
    """Stop training, before weights change, at a step whose loss is this many nats per token above the median of the
    last 32. Null never stops."""
    attention: Literal["auto", "by_row", "eager", "sdpa", "flex_attention", "flash_attention_2"] = "auto"
    """What cuts attention between packed rows. `auto`: on GPU flash-attn where it is installed, else PyTorch's flex
    attention; on CPU a fused kernel for each row. Only `sdpa` and `eager` make a mask of all pairs of tokens in a pass;
    `by_row` gives way to the student's own where rows may be longer than the architecture's sliding window, or where
    it does more than sdpa: biases, sinks, a cap of the scores."""
    liger: bool = False
    """Liger's fused kernels (the package liger-kernel, GPUs): faster layers, and logits that are never held whole (but
    in ZeRO-3)."""
    compile: bool = False
    """Compile the student's layers with torch.compile: faster steps after half a minute at the start (the machines need
    a C++ compiler). Not in ZeRO-3, which gathers a layer's weights between its operations."""
    gradient_checkpointing: bool | None = None
    """Compute a layer again in the backward pass, instead of keeping what it needs. None: on GPUs that have, as
    `cgd plan` estimates it, no room for a pass without (more than 90 % of one's memory)."""
    lora: LoraSection | None = None
    """Train an adapter only; the exported student has it merged in, and beside it in `adapter/`."""
    workers: PositiveInt = 1
    min_workers: PositiveInt | None = None
    """Fewest workers to train with if nodes are lost or missing: training resumes from the last checkpoint with those
    that are there. Every ten minutes Ray checks for more, and restarts from the last checkpoint with them. Null waits
    for all workers."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "cpu"] = "none"
    """`cpu`: the host keeps fp32 weights and optimiser states (and, in stage 3, the parameters)."""
    launcher: Literal["ray", "torchrun"] = "ray"
    """`torchrun`: the run prepares the rows, prints the command that trains, and continues when that is done. For
    machines from a scheduler such as Slurm, without Ray."""
    seed: int | None = None
    """None takes `run.seed`."""
    checkpoint_interval: PositiveInt = 100
    """Optimiser steps between checkpoints; the last step always writes one."""
    keep_checkpoints: PositiveInt = 2
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the prompts, chosen by hash, whose rows are not trained on; their loss is measured at every
    checkpoint."""
    export: Literal["last", "best"] = "last"
    """Checkpoint that becomes the student: the last one, or the one with the lowest validation loss."""
    stop_timeout_s: Annotated[float, Field(ge=0)] = 60.0
    """Longest wait, in seconds, for a checkpoint when the command is interrupted: a step or two and the writing. A
    second signal ends it at once."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts of dead workers from the last checkpoint before training fails."""
    tracking: TrackingSection = TrackingSection()
    resources: TrainingResources = TrainingResources()

    @property
    def methods(self) -> set[MethodName]:
        """The methods that rows must serve: the run's own, and those that it is compared with."""
        return set().union(*(self._parts_of(method) for method in (self.method, *self.compared_with)))

    @property
    def own_methods(self) -> set[MethodName]:
        """The run's method, or those that it mixes."""
        return self._parts_of(self.method)

    def _parts_of(self, method: MethodOrMix) -> set[MethodName]:
        return set(self.mix) if method == "mix" else {method}

    @model_validator(mode="after")
    def _batch_is_shared_out(self) -> Self:
        if self.batch_size < self.workers:
            raise ValueError(
                f"batch_size {self.batch_size} is smaller than workers {self.workers}. Fix: raise it, or lower workers"
            )
        if self.offload == "cpu" and self.zero_stage == 0:
            raise ValueError("offload cpu with zero_stage 0, which shards nothing. Fix: set zero_stage to 1, 2 or 3")
        if self.export == "best" and not self.validation_fraction:
            raise ValueError("export best without validation rows. Fix: set validation_fraction above 0")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} is larger than workers {self.workers}. Fix: lower it, or raise workers"
            )
        return self

    @model_validator(mode="after")
    def _attention_takes_it(self) -> Self:
        if self.attention == "flash_attention_2" and self.precision == "fp32":
            raise ValueError("attention flash_attention_2 takes no fp32. Fix: set precision to bf16")
        return self

    @model_validator(mode="after")
    def _stage_3_can_do_it(self) -> Self:
        if self.zero_stage < 3:
            return self
        if self.compile:
            raise ValueError(
                "compile with zero_stage 3, which gathers weights inside a layer. Fix: set zero_stage to 0, 1 or 2"
            )
        if self.lora and self.lora.quantization:
            raise ValueError(
                "lora.quantization with zero_stage 3: 4-bit weights are not sharded. Fix: set zero_stage to 0, 1 or 2"
            )
        return self


class ServingSection(Access, Replicas):
    """The trained student behind an OpenAI-compatible HTTP endpoint (Ray Serve LLM)."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    max_model_len: PositiveInt | None = None
    force: bool = False
    """Serve a student that failed one of `evaluation.gates`."""
    trial: bool = False
    """After a run, serve the student briefly and ask it one held-out question over HTTP (as the demo does)."""

    @model_validator(mode="after")
    def _no_key_on_loopback_only(self) -> Self:
        if self.no_key and not is_loopback(self.host):
            raise ValueError(
                f"serving.no_key: others reach serving.host {self.host}. Fix: leave no_key out, or give 127.0.0.1"
            )
        return self
