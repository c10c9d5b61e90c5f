"""Ray resources that an engine or a worker requests. Imports no Ray: recipes are read without it."""

from dataclasses import dataclass

ACCELERATOR = "accelerator_type:"
_ACCELERATOR_SHARE = 0.001  # share of a node's accelerator that Ray reserves for an actor that names its type


@dataclass(frozen=True)
class Demand:
    """Resources of one engine or worker on one node, or of several in total."""

    cpus: float
    gpus: float
    accelerator_type: str | None = None

    def bundle(self) -> dict[str, float]:
        """The demand as a bundle of a placement group, without zeros, which Ray refuses."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus}
        if self.accelerator_type:
            amounts[ACCELERATOR + self.accelerator_type] = _ACCELERATOR_SHARE
        return {kind: amount for kind, amount in amounts.items() if amount}

    @property
    def is_nothing(self) -> bool:
        """Whether it requests no resources."""
        return not self.bundle()

    def times(self, count: int) -> "Demand":
        """The total of `count` such demands."""
        return Demand(self.cpus * count, self.gpus * count, self.accelerator_type)

    def __str__(self) -> str:
        kind = f" ({self.accelerator_type})" if self.accelerator_type else ""
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs{kind}"
