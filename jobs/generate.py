"""Generate drafts, critiques, refinements and examples: `python jobs/generate.py RECIPE [section.key=value ...]`."""

from cgd_ray.cli import job_main

if __name__ == "__main__":
    job_main(["generate"])
