"""vLLM 0.29: its engine, and what its errors say. Imports vLLM only where it is asked for: that takes ten seconds."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_ENDED_CORES = re.compile(r"Engine core initialization failed\..* Failed core proc\(s\): \{(?P<codes>.*)\}")
_ERROR_CODE = re.compile(r": [1-9]")  # a signal's is below zero, and not always there in time
_FOLDER = re.compile(r"/vllm/(\w+)/")  # of a traceback's lines


def engine_class() -> type["AsyncLLM"]:
    """The engine that runs beside an event loop."""
    from vllm.v1.engine.async_llm import AsyncLLM

    found: type[AsyncLLM] = AsyncLLM
    return found


def engine_dead_error() -> type[Exception]:
    """What a request raises once the engine's core is gone."""
    from vllm.v1.engine.exceptions import EngineDeadError

    found: type[Exception] = EngineDeadError
    return found


def executor_in_core() -> type:
    """An executor that works in the engine core's own process."""
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    found: type = UniProcExecutor
    return found


def was_killed(error: RuntimeError) -> bool:
    """Whether vLLM says that a core ended while it loaded, and none with an error's exit code."""
    found = _ENDED_CORES.search(str(error))
    return found is not None and not _ERROR_CODE.search(found["codes"])


def failed_outside_engine(traceback: str) -> bool:
    """Whether vLLM failed as it read a request, and not in its engine."""
    folders = set(_FOLDER.findall(traceback))
    return bool(folders & {"entrypoints", "renderers"}) and "v1" not in folders
