"""Fetch the model to the replica's node before the engine starts."""

import asyncio
from typing import Any

from cgd_ray.compat.ray_serve import CallbackBase
from cgd_ray.config.run import StorageSection
from cgd_ray.models.resolve import local_model


class FetchModel(CallbackBase):
    """Runs inside each replica: fetches `s3://` models and hub ids into the cache of the node that needs them.

    Ray's own download of `s3://` uses neither our endpoint nor our cache, hence this hook, named in
    `LLMConfig.callback_config`. Its base class has no public name in Ray 2.60.
    """

    async def on_before_node_init(self) -> None:
        """Point the engine at the local copy.

        Raises:
            CgdError: the model cannot be fetched; the text states the reason.
        """
        arguments: dict[str, Any] = self.kwargs
        path = await asyncio.to_thread(
            local_model,
            arguments["model"],
            arguments["revision"],
            StorageSection.model_validate(arguments["storage"]),
        )
        self.llm_config.get_engine_config().hf_model_id = str(path)
        self.ctx.run_init_node = False
