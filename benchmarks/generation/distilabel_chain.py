"""A distilabel pipeline over some stages; run by `distilabel_side.py` in an environment with `distilabel[openai]`."""

import json
import sys
from pathlib import Path
from typing import Any

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts, Step, StepInput, StepOutput
from distilabel.steps.tasks import ChatGeneration

from benchmarks.generation.work import IN_FLIGHT, Task, messages


class Ask(Step):
    """Writes a stage's conversation; an incomplete row gets a prompt of one character."""

    stage: str

    @property
    def inputs(self) -> list[str]:
        """Columns read."""
        return ["prompt", "whole"]

    @property
    def outputs(self) -> list[str]:
        """Columns written."""
        return ["messages"]

    def process(self, inputs: StepInput) -> StepOutput:
        """Process one batch."""
        for row in inputs:
            row["messages"] = messages(self.stage, row) if row["whole"] else [{"role": "user", "content": "-"}]
        yield inputs


class Take(Step):
    """Stores the text under the stage's name; a text with the maximum number of tokens counts as cut off."""

    stage: str
    limit: int

    @property
    def inputs(self) -> list[str]:
        """Columns read."""
        return ["generation"]

    @property
    def outputs(self) -> list[str]:
        """Columns written."""
        return [self.stage, "whole"]

    def process(self, inputs: StepInput) -> StepOutput:
        """Process one batch."""
        for row in inputs:
            tokens = row.pop("distilabel_metadata")[f"statistics_{self.stage}_task"]["output_tokens"]
            row[self.stage] = row["generation"] if row["whole"] else None
            row["whole"] = row["whole"] and tokens < self.limit
        yield inputs


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
            ask = Ask(name=f"ask_{stage}", stage=stage, input_batch_size=IN_FLIGHT)
            take = Take(name=f"take_{stage}", stage=stage, limit=limit, input_batch_size=IN_FLIGHT)
            steps = [ask, chat, take]
            for following in steps:
                last.connect(following)
                last = following
    made = pipeline.run(use_cache=False)["default"]["train"]
    (folder / "rows.json").write_text(json.dumps(list(made)))


if __name__ == "__main__":
    main()
