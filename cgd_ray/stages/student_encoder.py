"""Tokenizer and chat template of a recipe's student, tested on conversations like those of its training."""

from collections.abc import Sequence

from cgd_ray.config.recipe import Recipe
from cgd_ray.models.resolve import local_model
from cgd_ray.prompts.chat import load_tokenizer, require_turns, template_text
from cgd_ray.prompts.chat_encoder import SAMPLE, ChatEncoder
from cgd_ray.prompts.conversation import History, with_system


def student_encoder(recipe: Recipe, histories: Sequence[History] = ()) -> ChatEncoder:
    """Load the encoder of the recipe's student; the model's weights are not fetched.

    Args:
        recipe: recipe with the student.
        histories: samples of turns before prompts (see `sample_history`) that the chat template must also render.

    Raises:
        ConfigError: the model does not exist, or has no chat template that shows all texts and ends its turns.
    """
    student = recipe.student
    folder = local_model(student.model, student.revision, recipe.storage, weights=False)
    template = template_text(student.engine.chat_template, "student.engine.chat_template")
    tokenizer = load_tokenizer(folder, template, "student")
    arguments = recipe.generation.draft.chat_template_kwargs
    require_turns(tokenizer, SAMPLE.turns, "student", arguments)
    encoder = ChatEncoder(tokenizer, arguments)
    for history in (with_system((), recipe.data.system_prompt), *histories):
        encoder.require_teachable(history, multi_turn=recipe.training.context == "multi-turn")
    return encoder
