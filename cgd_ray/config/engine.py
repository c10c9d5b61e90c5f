"""Student and teacher: the model of each and the engine that runs it."""

from typing import Annotated

from pydantic import Field

from cgd_ray.config.base import Section
from cgd_ray.config.places import ModelPlace
from cgd_ray.inference.openai.options import OpenAIOptions
from cgd_ray.inference.options import ModelRef
from cgd_ray.inference.scripted import ScriptedOptions
from cgd_ray.inference.vllm.options import VllmOptions, VllmTeacherOptions

StudentEngine = Annotated[VllmOptions | ScriptedOptions, Field(discriminator="type")]
TeacherEngine = Annotated[VllmTeacherOptions | OpenAIOptions | ScriptedOptions, Field(discriminator="type")]


class StudentSection(Section):
    """The model that drafts and is then trained: the very same checkpoint."""

    model: ModelPlace
    """Hub id, directory or `s3://` prefix."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; a branch is resolved to its commit."""
    engine: StudentEngine = VllmOptions()

    @property
    def ref(self) -> ModelRef:
        """Its model."""
        return ModelRef(self.model, self.revision)


class TeacherSection(Section):
    """The model that criticises and refines."""

    engine: TeacherEngine

    @property
    def ref(self) -> ModelRef:
        """Its model."""
        return ModelRef(self.engine.model, self.engine.revision)
