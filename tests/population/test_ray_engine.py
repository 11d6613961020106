"""The Ray engine on a loopback cluster of two machines, one of which is lost in the middle: the bytes of one process."""

import threading
import time

import pytest
from population.toy_job import files

from scaletot_jax.errors import DataError
from scaletot_jax.population.score import Options, score_table

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")
pytestmark = pytest.mark.xdist_group("ray")
ROWS = Options(shard_rows=125, batch_rows=128)


@pytest.fixture
def cluster(monkeypatch):
    """Two machines; the driver's own has no place for tasks besides one, so that the other is needed."""
    from ray.cluster_utils import Cluster

    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "JAX_PLATFORMS": "cpu"}.items():
        monkeypatch.setenv(name, value)
    small = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    cluster.add_node(**{name: value for name, value in small.items() if name != "include_dashboard"})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_lost_machine_costs_time_and_nothing_else(served, users, cluster, tmp_path):
    from scaletot_jax.population.ray_engine import score_on_ray

    assert score_table(served.directory, users, tmp_path / "local", ROWS)
    lost = []

    def lose_a_machine():
        records = tmp_path / "ray" / "records"
        while len(list(records.glob("part*")) if records.exists() else ()) < 2:
            time.sleep(0.005)
        lost.append(len(list(records.glob("part*"))))
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    thread = threading.Thread(target=lose_a_machine, daemon=True)
    thread.start()
    assert score_on_ray(served.directory, users, tmp_path / "ray", ROWS)
    thread.join(30)
    assert lost and lost[0] < 8, "the machine was to be lost in the middle"
    assert files(tmp_path / "ray") == files(tmp_path / "local")
    assert score_on_ray(served.directory, users, tmp_path / "ray", ROWS)  # nothing to do
    with pytest.raises(DataError, match="no file and no folder"):
        score_on_ray(served.directory, tmp_path / "nowhere", tmp_path / "other", ROWS)
