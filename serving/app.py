"""Entry point of the Serve application: `serve run serving.app:build model=/path/to/student cpus=2 keys_file=FILE`."""

from cgd_ray.serving.app import build

__all__ = ["build"]
