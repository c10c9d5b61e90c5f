"""Profile one of our optimiser steps: `python -m benchmarks.training.profile_step --model DIR`."""

import argparse
import tempfile

from torch.profiler import ProfilerActivity, profile

from benchmarks.training.__main__ import make_task
from benchmarks.training.ours import make_job, stand_alone


def main() -> None:
    """Profile the third step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="directory of a chat model")
    parser.add_argument("--setting", default="2-4096", help="as benchmarks.training.ours says")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.set_defaults(rows=48, batch_size=16)
    options = parser.parse_args()
    stand_alone()
    from cgd_ray.training.loop.trainer import Trainer

    task = make_task(options)
    task.setting = options.setting
    with tempfile.TemporaryDirectory() as root:
        steps = Trainer(make_job(task, root)).steps()
        next(steps), next(steps)  # memory is allocated, layers are compiled
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            next(steps)
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=60))


if __name__ == "__main__":
    main()
