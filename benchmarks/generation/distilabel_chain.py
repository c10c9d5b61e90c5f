"""A distilabel pipeline over some stages; run by `distilabel_side.py` in an environment with `distilabel[openai]`."""

import json
import sys
from pathlib import Path
from typing import Any

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts, StepInput, StepOutput, step
from distilabel.steps.tasks import ChatGeneration

from benchmarks.generation.work import IN_FLIGHT, Task, messages


def asker(stage: str) -> Any:
    """A step that writes the conversation; a row that is not whole asks for next to nothing."""

    @step(inputs=["prompt", "whole"], outputs=["messages"])
    def ask(inputs: StepInput) -> StepOutput:
        for row in inputs:
            row["messages"] = messages(stage, row) if row["whole"] else [{"role": "user", "content": "-"}]
        yield inputs

    return ask(name=f"ask_{stage}", input_batch_size=IN_FLIGHT)


def taker(stage: str, limit: int) -> Any:
    """A step that keeps the text under the stage's name."""

    @step(inputs=["generation", "distilabel_metadata"], outputs=[stage, "whole"])
    def take(inputs: StepInput) -> StepOutput:
        for row in inputs:
            statistics = row["distilabel_metadata"][f"statistics_{stage}_task"]
            row[stage] = row["generation"] if row["whole"] else None
            row["whole"] = row["whole"] and statistics["output_tokens"] < limit
            row["distilabel_metadata"] = None
        yield inputs

    return take(name=f"take_{stage}", input_batch_size=IN_FLIGHT)


def main() -> None:
    """Run the stages of `urls.json` over `rows.json`, in place."""
    task, folder = Task.read(sys.argv[1]), Path(sys.argv[2])
    urls = json.loads((folder / "urls.json").read_text())
    with Pipeline(name="cgd") as pipeline:
        last: Any = LoadDataFromDicts(
            name="rows", data=json.loads((folder / "rows.json").read_text()), batch_size=IN_FLIGHT
        )
        for stage, url in urls.items():
            limit = task.max_tokens[stage]
            llm = OpenAILLM(
                model="model",
                base_url=url,
                api_key="none",
                timeout=1200,
                generation_kwargs={"temperature": 0.0, "max_new_tokens": limit},
            )
            chat = ChatGeneration(
                name=f"{stage}_task", llm=llm, input_batch_size=IN_FLIGHT, add_raw_input=False, add_raw_output=False
            )
            steps = [asker(stage), chat, taker(stage, limit)]
            for following in steps:
                last.connect(following)
                last = following
    made = pipeline.run(use_cache=False)["default"]["train"]
    (folder / "rows.json").write_text(json.dumps(list(made)))


if __name__ == "__main__":
    main()
