"""Compile the locks from pyproject.toml (`make lock`), or say whether they are up to date (`make check`).

    python requirements/lock.py compile [--upgrade]
    python requirements/lock.py check

cpu.txt and gpu.txt hold everything but DeepSpeed, which comes as source and is built against the torch of the
first pass: deepspeed.txt is the second. eval.txt holds what the extra `eval` adds to cpu.txt. The first line
of a lock is the digest of what it was compiled from, so that `check` needs neither network nor resolver.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PYPROJECT = FOLDER.parent / "pyproject.toml"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Lock:
    """One output file and what it is compiled from."""

    name: str
    extras: tuple[str, ...]
    overrides: str | None = None
    only: str | None = None
    """Lock this one dependency by itself, without what it depends on."""
    on_top_of: str | None = None
    """Leave out what that lock holds already."""

    @property
    def path(self) -> Path:
        """The lock file."""
        return FOLDER / f"{self.name}.txt"


WITH_BOTH = ("build", "dev", "mlflow", "qlora", "liger")
LOCKS = (
    Lock("cpu", ("cpu", *WITH_BOTH), "overrides-cpu.txt"),
    Lock("gpu", ("gpu", *WITH_BOTH), "overrides-gpu.txt"),
    Lock("eval", ("cpu", *WITH_BOTH, "eval"), "overrides-cpu.txt", on_top_of="cpu"),
    Lock("deepspeed", (), only="deepspeed"),
)


def main() -> None:
    """Compile or check every lock."""
    parser = argparse.ArgumentParser(description="Compile the locks, or check that they are up to date.")
    parser.add_argument("command", choices=["compile", "check"])
    parser.add_argument("--upgrade", action="store_true", help="newest versions instead of those of the old lock")
    arguments = parser.parse_args()
    if arguments.command == "compile":
        for lock in LOCKS:
            compile_lock(lock, upgrade=arguments.upgrade)
        return
    stale = [lock.path.name for lock in LOCKS if not is_fresh(lock)]
    if stale:
        sys.exit(f"requirements: {', '.join(stale)} is out of date with pyproject.toml; run make lock")


def compile_lock(lock: Lock, *, upgrade: bool) -> None:
    """Resolve with uv and write the lock, its inputs' digest on top."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes"]
    command += ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
    command += ["--custom-compile-command", "make lock", "--output-file", str(lock.path)]
    command += [option for extra in lock.extras for option in ("--extra", extra)]
    if lock.overrides:
        command += ["--override", f"requirements/{lock.overrides}"]
    if "cpu" in lock.extras:
        command += _torch_cpu_source()
    if upgrade:
        command.append("--upgrade")
    if lock.on_top_of:
        held = re.findall(r"^([\w.-]+)==", (FOLDER / f"{lock.on_top_of}.txt").read_text(), re.MULTILINE)
        command += [option for package in held for option in ("--no-emit-package", package)]
        command += ["--constraint", f"requirements/{lock.on_top_of}.txt", "--no-annotate"]
    if lock.only:
        with tempfile.NamedTemporaryFile("w", suffix=".in") as source:
            source.write(_requirement(lock.only))
            source.flush()
            subprocess.run([*command, "--no-deps", "--no-annotate", source.name], check=True, cwd=FOLDER.parent)
    else:
        command += ["--no-emit-package", "deepspeed", "pyproject.toml"]
        subprocess.run(command, check=True, cwd=FOLDER.parent)
    text = lock.path.read_text().split("\n# The following packages were excluded", maxsplit=1)[0].rstrip()
    lock.path.write_text(f"{_digest_line(lock)}\n{text}\n")


def is_fresh(lock: Lock) -> bool:
    """Whether the lock was compiled from the present inputs."""
    return lock.path.is_file() and lock.path.read_text().startswith(_digest_line(lock) + "\n")


def _digest_line(lock: Lock) -> str:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    inputs = {
        "dependencies": [_requirement(lock.only)] if lock.only else project["dependencies"],
        "extras": {extra: project["optional-dependencies"][extra] for extra in lock.extras},
        "overrides": (FOLDER / lock.overrides).read_text() if lock.overrides else None,
    }
    return f"# inputs: sha256:{hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()}"


def _requirement(package: str) -> str:
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    return str(next(line for line in dependencies if line.startswith(f"{package}==")))


def _torch_cpu_source() -> list[str]:
    """Where torch's CPU wheel is: among pip's local wheels, where there are some, or on PyTorch's index."""
    if wheels := os.environ.get("PIP_FIND_LINKS"):
        return [option for place in wheels.split() for option in ("--find-links", place)]
    return ["--extra-index-url", TORCH_CPU_INDEX, "--index-strategy", "unsafe-best-match"]


if __name__ == "__main__":
    main()
