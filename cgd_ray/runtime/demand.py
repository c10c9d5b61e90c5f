"""What an engine or a worker asks of Ray. Imports no Ray: recipes are read without it."""

from dataclasses import dataclass

ACCELERATOR = "accelerator_type:"
_ACCELERATOR_SHARE = 0.001  # what Ray takes of a node's accelerator for an actor that names its type


@dataclass(frozen=True)
class Demand:
    """What one engine or worker needs on one node, or several of them in all."""

    cpus: float
    gpus: float
    accelerator_type: str | None = None

    def bundle(self) -> dict[str, float]:
        """As a bundle of a placement group; Ray refuses zeros."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus}
        if self.accelerator_type:
            amounts[ACCELERATOR + self.accelerator_type] = _ACCELERATOR_SHARE
        return {kind: amount for kind, amount in amounts.items() if amount}

    @property
    def is_nothing(self) -> bool:
        """Whether it needs no place."""
        return not self.bundle()

    def times(self, count: int) -> "Demand":
        """So many of them."""
        return Demand(self.cpus * count, self.gpus * count, self.accelerator_type)

    def __str__(self) -> str:
        kind = f" ({self.accelerator_type})" if self.accelerator_type else ""
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs{kind}"
