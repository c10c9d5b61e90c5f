"""Train the student of a recipe after generation: `python jobs/train.py RECIPE [section.key=value ...]`."""

from cgd_ray.cli import job_main

if __name__ == "__main__":
    job_main(["train"])
