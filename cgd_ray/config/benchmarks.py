"""Public benchmarks by name: where the hub has them, their columns, and how their questions are put.

A local copy (`data: {type: jsonl, path: FILE}`) has the hub's columns.
"""

_BOXED = "{{ prompt }}\n\nPut the final answer in \\boxed{}."
_STORY = "{{ Body }} {{ Question }}\n\nPut the final answer in \\boxed{}."
_CHOSEN = "{{ prompt }}\n\n{{ choices }}\n\nPut the letter of the right choice in \\boxed{}."


def _math(dataset: str, split: str, question: str, answer: str, subset: str | None = None) -> dict[str, object]:
    columns = {"prompt_column": question, "reference_column": answer, "prompt_template": _BOXED}
    return {"type": "hf", "dataset": dataset, "subset": subset, "split": split, **columns}


BENCHMARKS: dict[str, dict[str, object]] = {
    "gsm8k": _math("openai/gsm8k", "test", "question", "answer", subset="main"),
    "math-500": _math("HuggingFaceH4/MATH-500", "test", "problem", "answer"),
    "amc23": _math("math-ai/amc23", "test", "question", "answer"),
    "aime24": _math("HuggingFaceH4/aime_2024", "train", "problem", "answer"),
    "aime25": _math("math-ai/aime25", "test", "problem", "answer"),
    "minerva": _math("math-ai/minervamath", "test", "question", "answer"),
    "olympiadbench": _math("math-ai/olympiadbench", "test", "question", "final_answer"),
    "svamp": _math("ChilleD/SVAMP", "test", "Question", "Answer") | {"prompt_template": _STORY},
    "asdiv": _math("EleutherAI/asdiv", "validation", "question", "answer")
    | {"prompt_template": _STORY.replace("Body", "body").replace("Question", "question")},
    "mmlu-pro": _math("TIGER-Lab/MMLU-Pro", "test", "question", "answer")
    | {"choices_column": "options", "prompt_template": _CHOSEN},
    "gpqa-diamond": _math("Idavidrein/gpqa", "train", "Question", "Correct Answer", subset="gpqa_diamond")
    | {
        "choices_columns": ["Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"],
        "prompt_template": _CHOSEN,
    },
}
"""The `data` of an evaluation set, by its name."""
