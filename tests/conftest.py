"""Real models for tests, the `gpu` marker, and CI's rule that nothing may be skipped unseen."""

import contextlib
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import structlog
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from cgd_ray.models.demo import fetch

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

settings.register_profile("default", deadline=None)  # a busy machine is no failure
settings.load_profile("default")


class SkipGuard:
    """Fails a session in which a test was skipped for another reason than a missing GPU.

    A skipped test proves nothing; in CI, where everything a test needs is installed, a skip is a mistake.
    """

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and "gpu" not in report.keywords:
            self.skipped.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.skipped and exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.write_line(f"CI: skipped, which fails the session: {', '.join(self.skipped)}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    # nohup and a shell's background jobs ignore it, and what a test starts would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(SkipGuard())


# Of the integration tests, those whose processes are few and wait for nothing that a busy machine may make late.
_BESIDE_OTHERS = {
    "test_deletions",
    "test_gguf_conversion",
    "test_layouts",
    "test_liger",
    "test_merges_on_s3",
    "test_mistakes",
    "test_models",
    "test_names",
    "test_plan",
    "test_rate_limits",
    "test_reasoning",
    "test_resume_reads",
    "test_torchrun",
    "test_vllm_errors",
}


class _Lanes(LoadScopeScheduling):
    """Of several processes (`-n 2`) one has all tests with clusters and engines, one by one; the others have the rest.

    pytest-xdist's groups, which say the same, have no effect under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "clusters" if _needs_cluster(nodeid) else nodeid.partition("::")[0]


def _needs_cluster(nodeid: str) -> bool:
    file = Path(nodeid.partition("::")[0])
    return "unit" not in file.parts and file.stem not in _BESIDE_OTHERS


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Lanes:
    return _Lanes(config, log)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "long" in item.path.parts:
            item.add_marker(pytest.mark.long)
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and not _has_cuda():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(tryfirst=True)  # before fixtures, whose processes inherit it
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests beside those with clusters take no more of the cores than Ray's workers, whose niceness is 15."""
    if "PYTEST_XDIST_WORKER" in os.environ and not _needs_cluster(item.nodeid):
        os.nice(max(0, 15 - os.nice(0)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test that fails ends what it started: it would take the cores from all later ones."""
    before = set(psutil.Process().children(recursive=True))
    try:
        return (yield)
    except BaseException:
        end_processes(set(psutil.Process().children(recursive=True)) - before)
        raise


def end_processes(processes: set[psutil.Process]) -> None:
    """Terminate them, then kill those that stay."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=20)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture(autouse=True)
def _logging_of_no_earlier_test() -> Iterator[None]:
    """A command that a test ran in this process logs to that test's captured standard error, which closes with it."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def student_dir() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory."""
    return fetch("smollm2-135m")


@pytest.fixture(scope="session")
def teacher_dir() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct as a Hugging Face directory."""
    return fetch("qwen2.5-0.5b")


@pytest.fixture(scope="module")
def cluster() -> Iterator["Cluster"]:
    """A cluster of one node, which this process has joined and to which nodes can be added."""
    import ray  # seconds that no unit test needs cost
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def _has_cuda() -> bool:
    import torch  # seconds that no test without the marker need cost

    return torch.cuda.is_available()
