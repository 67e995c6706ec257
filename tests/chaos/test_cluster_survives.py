"""A node of a real Ray cluster is lost while jobs run on it; `make chaos` does the same to every job in every way."""

from __future__ import annotations

import os

import pytest
from chaos_cluster import ChaosCluster
from trials import make_preprocess, make_train, run_trial, undisturbed_run

SEED = int(os.environ.get("CHAOS_SEED", "0"))

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def cluster():
    with ChaosCluster() as cluster:
        yield cluster


@pytest.mark.parametrize(
    "make", [make_preprocess, pytest.param(make_train, marks=pytest.mark.slow)], ids=["preprocess", "train"]
)
def test_a_lost_node_loses_and_repeats_nothing(cluster, tmp_path, make):
    job = make(tmp_path)
    undisturbed = undisturbed_run(job, cluster, tmp_path)
    trial = run_trial(
        job, "node", SEED, num_kills=1, cluster=cluster, folder=tmp_path / "trial", undisturbed=undisturbed
    )
    assert trial.holds, trial
