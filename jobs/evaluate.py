"""Evaluate a recipe whose student is trained: `python jobs/evaluate.py RECIPE [section.key=value ...]`."""

from cgd_ray.cli import job_main

if __name__ == "__main__":
    job_main(["evaluate"])
