"""What tests share: one trained policy, one comparison, a Ray cluster."""

import shutil

import pytest
import torch
from filelock import FileLock

from pacesetter.inner_models.engine.host import prepare_process

prepare_process()  # before any test multiplies matrices: later it would have no effect


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, request):
    """Makes a folder that all workers of pytest-xdist share, by its name; nobody writes to it."""
    root = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        root = root.parent

    def made(name, make):
        with FileLock(root / f"{name}.lock"):
            if not (root / name).is_dir():
                make(root / f"{name}.new")
                (root / f"{name}.new").rename(root / name)
        return root / name

    return made


@pytest.fixture(scope="session")
def trained(made_once):
    """The folder of a finished training with the settings `tiny.TINY`, seed 3."""
    from pacesetter.agent.training.train import train
    from tiny import TINY

    return made_once("trained", lambda out: train(TINY, out, seed=3, progress=False, preset="tiny"))


@pytest.fixture(scope="session")
def compared(made_once):
    """The folder of a finished comparison: two arms and the reference, one task, two seeds."""
    from pacesetter.experiments.comparison import CompareConfig, compare
    from tiny import SmallFamily, small_task

    config = CompareConfig(arms=("policy", "adamw-cosine"), num_seeds=2, trials=2)
    tasks = {"tasks": [small_task()], "families": [SmallFamily()]}
    return made_once("compared", lambda out: compare(config, out, **tasks))


@pytest.fixture(scope="session")
def browser():
    """A Chromium; tests that need one are skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs the package playwright, of the extra `browser`"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("needs Chromium; none is on the PATH")
    with playwright.sync_playwright() as found:
        chromium = found.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


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
    from pacesetter.envs.ray import cluster as ray_cluster

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
