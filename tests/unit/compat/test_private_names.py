"""Every name that a library does not promise to keep: an upgrade that drops one fails here, by the name."""

import importlib
import inspect
from functools import reduce

import pytest

NAMES = [
    "ray._private.state:state.get_cluster_config",
    "ray._private.worker:global_worker",
    "ray.core.generated.autoscaler_pb2:GetClusterStatusReply",
    "ray.experimental.internal_kv:_internal_kv_get",
    "ray.llm._internal.common.callbacks.base:CallbackBase.on_before_node_init",
    "ray.data:Dataset.map_batches",
    "vllm.v1.engine.async_llm:AsyncLLM.from_engine_args",
    "vllm.v1.engine.exceptions:EngineDeadError",
    "vllm.v1.executor.uniproc_executor:UniProcExecutor",
    "vllm.reasoning:ReasoningParserManager.get_reasoning_parser",
    "torch._subclasses.fake_tensor:FakeTensorMode",
    "torch.distributed.checkpoint._fsspec_filesystem:FileSystem",
    "torch.distributed.checkpoint.filesystem:_StorageInfo",
    "torch.distributed.checkpoint.filesystem:FileSystemReader._slice_file",
    "s3fs:S3FileSystem._expand_path",
    "s3fs:S3FileSystem._copy",
    "s3fs:S3FileSystem._call_s3",
    "s3fs:S3FileSystem._cp_file",
    "openai:DefaultAsyncHttpxClient",
]

WORDS = {
    # DeepSpeed's members are made as it goes: their names stand in its sources.
    "deepspeed.runtime.zero.stage_1_and_2": ["single_partition_of_fp32_groups", "update_lp_params"],
    "deepspeed.runtime.bf16_optimizer": ["fp32_groups_flat_partition", "update_lp_params"],
    "deepspeed.runtime.zero.stage3": [
        "fp32_partitioned_groups_flat", "fp16_partitioned_groups_flat", "fp16_partitioned_groups", "grad_position",
        "get_param_id", "checkpoint_event_prologue", "checkpoint_event_epilogue", "unflatten",
    ],
    "deepspeed.utils.tensor_fragment": [
        "_hp_mapping", "hp_fragment_address", "lp_fragment_address", "param_group_index",
    ],
    "ray.util.placement_group": ["_soft_target_node_id", "bundle_label_selector"],
    "ray.data.dataset": ["ray_remote_args_fn", "_logical_plan"],
    "ray._common.ray_option_utils": ["_generator_backpressure_num_objects"],
    "ray.serve._private.replica": ["__serve_build_asgi_app__"],
    "vllm.v1.engine.utils": ["Engine core initialization failed", "Failed core proc"],
    "transformers.configuration_utils": ["_attn_implementation"],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_there(name: str) -> None:
    module, _, path = name.partition(":")
    assert reduce(getattr, path.split("."), importlib.import_module(module)) is not None


@pytest.mark.parametrize(("module", "word"), [(module, word) for module, words in WORDS.items() for word in words])
def test_a_word_stands_in_the_source(module: str, word: str) -> None:
    assert word in inspect.getsource(importlib.import_module(module))
