"""vLLM 0.29: its engine, and the meaning of its errors. Imports vLLM only on use: the import takes ten seconds."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_ENDED_CORES = re.compile(r"Engine core initialization failed\..* Failed core proc\(s\): \{(?P<codes>.*)\}")
_ERROR_CODE = re.compile(r": [1-9]")  # a signal's code is below zero, and not always set in time
_FOLDER = re.compile(r"/vllm/(\w+)/")  # in a traceback's lines


def engine_class() -> type["AsyncLLM"]:
    """Return the class of the engine that runs beside an event loop."""
    from vllm.v1.engine.async_llm import AsyncLLM

    found: type[AsyncLLM] = AsyncLLM
    return found


def engine_dead_error() -> type[Exception]:
    """Return the class of a request's exception after the engine's core has ended."""
    from vllm.v1.engine.exceptions import EngineDeadError

    found: type[Exception] = EngineDeadError
    return found


def executor_in_core() -> type:
    """Return the class of an executor that runs in the engine core's own process."""
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    found: type = UniProcExecutor
    return found


def was_killed(error: RuntimeError) -> bool:
    """Whether vLLM reports that a core ended during loading, and none with an error's exit code."""
    found = _ENDED_CORES.search(str(error))
    return found is not None and not _ERROR_CODE.search(found["codes"])


def failed_outside_engine(traceback: str) -> bool:
    """Whether vLLM failed while it parsed a request, and not in its engine."""
    folders = set(_FOLDER.findall(traceback))
    return bool(folders & {"entrypoints", "renderers"}) and "v1" not in folders
