"""vLLM on our own devices: one AsyncLLM, greedy or sampled, with token ids as input."""

import asyncio
import contextlib
import os
import platform
from collections.abc import AsyncIterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from cgd_ray.compat.vllm import engine_class, engine_dead_error, executor_in_core, was_killed
from cgd_ray.config.run import StorageSection
from cgd_ray.errors import CgdError
from cgd_ray.inference.base import (
    Completion,
    CompletionError,
    EngineDiedError,
    PromptTooLongError,
    Request,
    answered_within,
    is_cut_off,
)
from cgd_ray.inference.vllm.arguments import cpu_environment, vllm_arguments
from cgd_ray.inference.vllm.options import VllmOptions
from cgd_ray.models.resolve import local_model
from cgd_ray.prompts.chat import TEMPLATE_ERRORS, encode_chat, set_template
from cgd_ray.redaction import one_line
from cgd_ray.runtime import processes
from cgd_ray.runtime.cores import CoreLease, lease_cores, loading_alone
from cgd_ray.runtime.device import installed_device, pretends_gpus
from cgd_ray.runtime.logs import own_log_tail

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM


log = structlog.get_logger(__name__)


class VllmEngine:
    """A model run by this process; its engine core is a child process that is recorded and ended with it."""

    def __init__(
        self,
        options: VllmOptions,
        model: str,
        revision: str | None,
        storage: StorageSection,
        *,
        cpus: int,
        gpus: float,
    ) -> None:
        self._options = options
        self._model = model
        self._revision = revision
        self._storage = storage
        self._cpus = cpus
        self._gpus = gpus
        self._lease: CoreLease | None = None
        self._engine: AsyncLLM | None = None
        self._tokenizer: Any = None
        self._parser: Any = None
        self._ends: frozenset[int] = frozenset()  # tokens that end a turn
        self._children: list[processes.Record] = []
        self._count = 0

    async def start(self) -> None:
        """Fetch the model to this node and load it; see `Engine`."""
        path = await asyncio.to_thread(local_model, self._model, self._revision, self._storage)
        if installed_device() == "cpu":
            self._require_no_real_gpu()
            self._lease = lease_cores(self._cpus)
        os.environ["HF_HUB_OFFLINE"] = "1"  # the model is local; look-ups would only hang without a network
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        before = processes.children()
        try:
            async with self._turn(), asyncio.timeout(self._options.start_timeout_s):
                await asyncio.to_thread(self._load_again_if_killed, path)
        except TimeoutError as error:
            raise CgdError(f"vLLM did not load {self._model} within {self._options.start_timeout_s} s") from error
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            tail = own_log_tail()
            raise CgdError(f"vLLM cannot load {self._model}: {_one_line(error)}\n{tail}".rstrip()) from error
        finally:
            self._children = [processes.record(pid, "vllm") for pid in processes.children() - before]

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Let the engines that share a GPU load one at a time."""
        with contextlib.ExitStack() as held:
            if 0 < self._gpus < 1:
                turn = loading_alone(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
                await asyncio.to_thread(held.enter_context, turn)
            yield

    def _require_no_real_gpu(self) -> None:
        if self._gpus and not pretends_gpus():
            raise CgdError(
                f"{platform.node()}: Ray gave the engine of {self._model} {self._gpus:g} GPUs, but the packages "
                "installed on this node compute on CPU. Fix: install the same packages on every node (cgd-ray[gpu])"
            )

    def _load_again_if_killed(self, path: Path) -> None:
        """Retry once if the core was killed, which is no model fault; a failed core would fail again, after minutes."""
        try:
            self._load(path)
        except RuntimeError as error:
            if not was_killed(error):
                raise
            log.warning("vLLM's core was killed while it loaded, and is started again", model=self._model)
            self._load(path)

    def _load(self, path: Path) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs

        options = self._options
        if self._lease:  # variables that OpenMP reads in the core's process
            os.environ.update(cpu_environment(options, self._lease.cores))
        arguments: dict[str, Any] = {
            "model": str(path),
            "distributed_executor_backend": _executor(options.devices),
            "enable_prefix_caching": True,
            "max_num_seqs": options.max_in_flight,
            "disable_log_stats": True,
            **vllm_arguments(options, self._gpus if installed_device() == "cuda" else 0),
        }
        self._engine = engine_class().from_engine_args(AsyncEngineArgs(**arguments))
        self._tokenizer = self._engine.get_tokenizer()
        set_template(self._tokenizer, options.chat_template, self._model)
        if options.reasoning_parser:
            from vllm.reasoning import ReasoningParserManager

            parser = ReasoningParserManager.get_reasoning_parser(options.reasoning_parser)
            self._parser = parser(self._tokenizer)
            self._ends = self._turn_ends()

    async def complete(self, request: Request) -> Completion:
        """Return one completion; see `Engine`. A prompt without room for `max_tokens` never reaches the engine."""
        engine = self._engine
        if engine is None:
            raise CgdError("the vLLM engine was not started")
        try:
            tokens, opening = self._encode(request)
        except TEMPLATE_ERRORS as error:
            raise CompletionError(f"the model's chat template refuses this conversation: {error}") from error
        room = engine.model_config.max_model_len - len(tokens)
        if room < request.decoding.max_tokens:
            raise PromptTooLongError(
                f"the prompt has {len(tokens)} tokens, which leaves {room} of max_tokens {request.decoding.max_tokens} "
                f"(max_model_len {engine.model_config.max_model_len})"
            )
        async with answered_within(self._options.request_timeout_s):
            made = await self._generate(engine, tokens, request)
        return self._completion(made, opening)

    def _encode(self, request: Request) -> tuple[list[int], list[int]]:
        """Return the prompt's tokens, and those of its generation prompt if a reasoning parser needs them."""
        messages, arguments = [turn.as_message() for turn in request.turns], request.decoding.chat_template_kwargs
        tokens = encode_chat(self._tokenizer, messages, add_generation_prompt=True, **arguments)
        if self._parser is None:
            return tokens, []
        before = encode_chat(self._tokenizer, messages, add_generation_prompt=False, **arguments)
        pairs = zip_longest(tokens, before)
        start = next((place for place, (one, other) in enumerate(pairs) if one != other), len(tokens))
        return tokens, tokens[start:]

    async def _generate(self, engine: "AsyncLLM", tokens: list[int], request: Request) -> "RequestOutput":
        from vllm import SamplingParams
        from vllm.exceptions import VLLMError
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        decoding = request.decoding
        params = SamplingParams(
            max_tokens=decoding.max_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=decoding.seed if decoding.temperature > 0 else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(choice=list(decoding.choices)) if decoding.choices else None,
        )
        self._count += 1
        final = None
        try:
            async for output in engine.generate({"prompt_token_ids": tokens}, params, f"{request.key}-{self._count}"):
                final = output
        except engine_dead_error() as error:
            raise EngineDiedError(f"the vLLM engine of {self._model} died\n{own_log_tail()}".rstrip()) from error
        except (VLLMError, ValueError) as error:  # refused, or failed while the engine lives on
            cause = error.__cause__ or error
            raise CompletionError(f"vLLM: {type(cause).__name__}: {_one_line(cause)}") from error
        if final is None:
            raise CompletionError("vLLM ended the request without an output")
        return final

    def _turn_ends(self) -> frozenset[int]:
        """Return the tokens at which the model's generation ends: those of its tokenizer and generation config."""
        config = self._engine.model_config.try_get_generation_config() if self._engine else {}
        named = config.get("eos_token_id")
        return frozenset({self._tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None})

    def _without_thinking(self, text: str, tokens: list[int], opening: list[int]) -> tuple[str, bool]:
        """Return the answer's text, and whether its thinking ended; `opening` is the generation prompt.

        A template may have ended the thinking (`enable_thinking: false`) or begun it, and a model may skip it.
        """
        parser = self._parser
        if parser is None or parser.is_reasoning_end(opening):
            return text, True
        if parser.is_reasoning_end(tokens):
            return self._tokenizer.decode(parser.extract_content_ids(tokens), skip_special_tokens=True).strip(), True
        start = parser.reasoning_start_str
        has_begun = start is None or start in self._tokenizer.decode(opening + tokens, skip_special_tokens=False)
        return ("", False) if has_begun else (text, True)

    def _completion(self, output: "RequestOutput", opening: list[int]) -> Completion:
        answer = output.outputs[0]
        tokens = list(answer.token_ids)
        if tokens and tokens[-1] in self._ends:  # parsers search backwards, and some stop at the end of a turn
            tokens.pop()
        text, has_ended = self._without_thinking(answer.text, tokens, opening)
        return Completion(
            text=text,
            truncated=is_cut_off(answer.finish_reason) or not has_ended,
            finish_reason=str(answer.finish_reason),
            prompt_tokens=len(output.prompt_token_ids or []),
            completion_tokens=len(answer.token_ids),
            cached_tokens=output.num_cached_tokens,
        )

    async def close(self) -> None:
        """End the engine core, and kill its processes if they remain."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)
        await asyncio.to_thread(processes.end, self._children)
        if self._lease is not None:
            self._lease.release()


def _executor(devices: int) -> str | type:
    """Choose the executor: one device needs only the engine core; several must not become vLLM's own Ray actors.

    On CPU, unless the executor is a class, vLLM starts a further process even for one worker, to set OpenMP's
    variables. They are set already (`cpu_environment`), and the process would import vLLM once more: 12 s on a slow
    core (`python -c "import vllm.v1.engine.core"`).
    """
    if devices > 1:
        return "mp"
    if installed_device() == "cuda":
        return "uni"
    return executor_in_core()


def _one_line(error: BaseException) -> str:
    return one_line(error, 500)
