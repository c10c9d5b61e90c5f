"""A teacher behind an endpoint that refuses, drops and dawdles: all rows done, politely, for no more than agreed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.errors import StoppedError
from cgd_ray.generation.run import GenerationResult, run_generation
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store
from tests.limited_endpoint import LimitedEndpoint, limited_endpoint

ROWS = 120
CONCURRENCY = 32
UNDER_WAY = 1.0  # seconds
PRICE = 1000.0  # per million tokens: a request of 120 tokens costs 0.12


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def endpoint() -> Iterator[LimitedEndpoint]:
    with limited_endpoint(per_second=40, retry_after=2) as server:
        yield server


def recipe(root: Path, endpoint: LimitedEndpoint, **teacher: Any) -> Recipe:
    prompts = "".join(f'{{"prompt": "Question {number}."}}\n' for number in range(ROWS + 1))
    (root / "data.jsonl").write_text(prompts)
    engine = {
        "type": "openai",
        "model": "teacher",
        "base_url": endpoint.url,
        "api_key_env": None,
        "concurrency": CONCURRENCY,
        "timeout_s": 20,
        "price_per_million_prompt_tokens": PRICE,
        "price_per_million_completion_tokens": PRICE,
    }
    tree: dict[str, Any] = {
        "run": {"name": "r", "root": str(root)},
        "storage": {"flush_seconds": 0.5},
        "data": {"type": "jsonl", "path": str(root / "data.jsonl"), "holdout": {"count": 1}},
        "student": {"model": "s", "engine": {"type": "scripted"}},
        "teacher": {"engine": engine | teacher},
        "evaluation": {"enabled": False},
        "generation": {"critique": {"max_tokens": 20}, "refine": {"max_tokens": 20}},
    }
    return parse_recipe(tree, "test")


def generate(made: Recipe) -> GenerationResult:
    store = Store(made.run.root)
    return run_generation(open_run(made, store))


@pytest.mark.usefixtures("_cluster")
def test_all_rows_are_done_and_the_endpoint_is_left_alone_when_it_asks(
    tmp_path: Path, endpoint: LimitedEndpoint
) -> None:
    result = generate(recipe(tmp_path, endpoint))
    assert {stage: counts["ok"] for stage, counts in result.counts.items()} == dict.fromkeys(result.counts, ROWS)
    statuses = [arrival.status for arrival in endpoint.arrivals]
    assert statuses.count(0) >= 10
    refused = [arrival for arrival in endpoint.arrivals if arrival.status == 429]
    assert refused, "the limit was never met"
    assert len(refused) < len(endpoint.arrivals) / 4
    for refusal in refused:
        # What was under way is excused, which takes long where cores are few; then nobody comes before the time, and no
        # crowd after it.
        since = [other.time - refusal.time for other in endpoint.arrivals if other.time > refusal.time + UNDER_WAY]
        assert not [seconds for seconds in since if seconds < endpoint.retry_after - 0.1]
        assert len([seconds for seconds in since if seconds < endpoint.retry_after + 0.05]) <= CONCURRENCY / 4


@pytest.mark.usefixtures("_cluster")
def test_the_spend_ceiling_holds_over_several_runs(tmp_path: Path, endpoint: LimitedEndpoint) -> None:
    ceiling = 12.0  # a hundred of the 240 requests
    for _ in range(2):
        with pytest.raises(StoppedError, match=r"spend_ceiling 12.0 is reached"):
            generate(recipe(tmp_path, endpoint, spend_ceiling=ceiling))
        billed = endpoint.billed_tokens * PRICE / 1e6
        # A connection that was dropped counts as billed, since it may have been; here it was not.
        assert 0.6 * ceiling < billed <= ceiling
    assert generate(recipe(tmp_path, endpoint, spend_ceiling=100.0)).counts["refine"]["ok"] == ROWS
