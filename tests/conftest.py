"""What tests share: those marked `gpu` run only where there is a CUDA device; a Ray cluster."""

import pytest
import torch

from pacesetter.envs.ray import cluster as ray_cluster
from pacesetter.inner_models.engine.host import prepare_process

prepare_process()  # before any test multiplies matrices: later it would have no effect


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


STORE = 100 * 2**20


def started(cluster_utils):
    """A cluster; Ray gives a machine half a minute to start one, which may be busy with others."""
    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": STORE}
    for left in (2, 1, 0):
        try:
            return cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        except Exception as error:
            if not left or "timed out" not in str(error):
                raise
    raise AssertionError


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one machine with two CPUs, to which tests add others; this process drives it."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with pytest.MonkeyPatch.context() as patch:
        # How soon the loss of a machine is noticed.
        patch.setenv("RAY_health_check_initial_delay_ms", "1000")
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_failure_threshold", "2")
        for name, value in ray_cluster._SETTINGS.items():
            patch.setenv(name, value)
        found = started(cluster_utils)
        try:
            with ray_cluster.connected(found.address):
                yield found
        finally:
            found.shutdown()


@pytest.fixture
def one_thread():
    """Workers have one thread each, with which alone numbers round alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
