"""Run all phases of a recipe: `ray job submit -- python jobs/pipeline.py RECIPE [section.key=value ...]`."""

from cgd_ray.cli import job_main

if __name__ == "__main__":
    job_main()
