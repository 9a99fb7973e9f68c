"""Inner runs on a Ray cluster: the same numbers for every number of workers, and after any loss."""

import os
import re
import signal
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.ray.vec_env import RayScheduleVecEnv
from pacesetter.envs.ray.workers import MOST_LOSSES, RemoteGroups, Workers
from pacesetter.envs.vec_env import ScheduleVecEnv
from pacesetter.inner_models.families.teachers.regression import TeacherMLP, TeacherRanges

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'pacesetter[ray]'")
# On a busy machine a worker may take long to start, and then the engine says so.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:waiting for"),
    pytest.mark.usefixtures("one_thread"),
]

FAMILIES = [
    TeacherMLP(TeacherRanges(num_train=(128, 256), horizon=(24, 40), eval_rows=32), name=name)
    for name in ("one", "two")
]
LAYOUT = {
    "num_groups": 3,
    "tasks_per_group": 1,
    "siblings": 2,
    "seed": 5,
    "control": ControlConfig(num_intervals=5),
}
STORE = 100 * 2**20


def episodes(env, decisions=9, *, disturb=lambda decision: None):
    """Everything that a learner sees of some decisions, as one list of arrays."""
    rng = np.random.default_rng(0)
    env.reset()
    seen = []
    for decision in range(decisions):
        disturb(decision)
        observations, rewards, dones, infos = env.step(rng.uniform(-1, 1, (env.num_envs, 3)))
        env.await_reset()
        losses = np.array([info.get("outer_valid_loss", -1.0) for info in infos])
        seen += [observations.copy(), rewards, dones, losses]
    return seen


@pytest.fixture(scope="module")
def here():
    """The same, of the local engine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = episodes(ScheduleVecEnv(FAMILIES, **LAYOUT))
    torch.set_num_threads(before)
    return found


@contextmanager
def warned():
    """What a block warns of, but for workers that are slow to start."""
    told = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        yield told
    messages = [str(w.message) for w in caught if w.category is RuntimeWarning]
    told += [message for message in messages if not message.startswith("waiting for")]


def equal(one, two):
    return len(one) == len(two) and all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize(
    ("count", "prefetch"), [pytest.param(1, False, marks=pytest.mark.slow), (2, True)]
)
def test_episodes_are_those_of_the_local_engine_for_any_number_of_workers(
    cluster, here, count, prefetch
):
    workers = Workers(count=count)
    env = RayScheduleVecEnv(FAMILIES, workers=workers, prefetch=prefetch, **LAYOUT)
    assert equal(episodes(env), here)
    assert env.next_episode == 3
    rows = env.num_envs
    assert {task.name for task in env.tasks} <= {"one", "two"}
    assert len(env.tasks) == rows
    if prefetch:
        for _ in range(3):
            last = env.step(np.zeros((rows, 3)))[0]
        assert not last.any()  # promised
        with pytest.raises(RuntimeError, match=r"call await_reset\(\) before"):
            env.step(np.zeros((rows, 3)))
        env.await_reset()
        assert last.any(axis=1).all()
    env.close()


def kill(groups, worker):
    os.kill(groups.processes[worker], signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_is_restarted_and_its_episode_replayed(cluster, here):
    env = RayScheduleVecEnv(FAMILIES, workers=Workers(count=2), prefetch=True, **LAYOUT)

    def disturb(decision):
        if decision in (2, 4):  # in the middle of an episode, and before its first decision
            kill(env._remote, worker=decision // 4)

    with warned() as told:
        assert equal(episodes(env, disturb=disturb), here)
    lost = [message for message in told if " was lost before the end of " in message]
    for worker, where in enumerate(("episode 0, decision 3", "episode 1, decision 1")):
        assert re.match(f"worker {worker} was lost before the end of {where};", lost[worker])
    env.close()


def until(done):
    end = time.monotonic() + 100
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_gone(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"


def welcomed(groups):
    """Whether no worker is late any more, as every episode begins by seeing."""
    return not [call for call in groups._away.values() if not ray.wait([call], timeout=0)[0]]


@pytest.mark.slow
def test_a_lost_machine_delays_one_rollout_and_changes_nothing(cluster, here):
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    cluster.wait_for_nodes()
    env = RayScheduleVecEnv(FAMILIES, workers=Workers(count=3, patience=1.0), **LAYOUT)
    nodes = []

    def disturb(decision):
        if decision == 2:
            cluster.remove_node(node, allow_graceful=False)
            until(lambda: any(map(is_gone, env._remote.processes.values())))
        if decision == 5:
            assert len(env._remote.here) == 2  # two CPUs are left, for two workers
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE))
            until(lambda: welcomed(env._remote))

    with warned() as told:
        assert equal(episodes(env, disturb=disturb), here)
    assert any("; the others take their runs over until" in message for message in told)
    assert len(env._remote.here) == 3  # back for the third episode
    env.close()
    cluster.remove_node(nodes[0])


@pytest.mark.slow
def test_a_worker_that_always_dies_ends_the_run_and_says_why(cluster):
    def deadly(seed, episode, group):
        os._exit(1)

    groups = RemoteGroups(deadly, 1, workers=Workers(count=1, threads=None))
    groups.begin(seed=0, episode=3)
    lost = f"lost {MOST_LOSSES + 1} times in episode 3, decision 0 .* fewer siblings"
    with pytest.raises(ChildProcessError, match=lost):
        groups.collect()
    groups.close()


class WaitingGroup:
    """The second waits at one decision until a file is there, if it is the first to."""

    def __init__(self, folder, episode, group):
        self.folder, self.state = folder, [episode, group]
        self.slow = (episode, group) == (0, 1)

    def begin(self):
        return list(self.state)

    def step(self, actions):
        self.state.append(actions)
        if self.slow and len(self.state) == 4 and not (self.folder / "begun").exists():
            (self.folder / "begun").touch()
            while not (self.folder / "go on").exists():
                time.sleep(0.05)
        return list(self.state)


@pytest.mark.slow
def test_a_worker_that_is_stuck_delays_one_rollout(cluster, tmp_path):
    def draw(seed, episode, group):
        return WaitingGroup(tmp_path, episode, group)

    groups = RemoteGroups(draw, 2, workers=Workers(count=2, threads=None, patience=1))
    with warned() as told:
        groups.begin(seed=0, episode=0)
        assert groups.collect() == [[0, 0], [0, 1]]
        for decision in range(5):
            groups.step([f"a{decision}", f"b{decision}"])
            taken = groups.collect()
    assert (tmp_path / "begun").exists()
    assert taken == [[0, 0, *(f"a{i}" for i in range(5))], [0, 1, *(f"b{i}" for i in range(5))]]
    (said,) = told
    assert re.match("workers 1 have not answered for .* episode 0, decision 2; the others", said)
    assert groups.here == [0]
    groups.begin(seed=0, episode=1)  # it is stuck still
    assert groups.collect() == [[1, 0], [1, 1]]
    assert groups.here == [0]
    (tmp_path / "go on").touch()
    until(lambda: welcomed(groups))
    groups.begin(seed=0, episode=2)
    assert groups.collect() == [[2, 0], [2, 1]]
    assert groups.here == [0, 1]
    groups.close()


@pytest.mark.slow
def test_what_a_group_raises_is_raised_here(cluster):
    short = TeacherMLP(TeacherRanges(horizon=(3, 3)))
    env = RayScheduleVecEnv([short], workers=Workers(count=1))
    with pytest.raises(ValueError, match="'teacher-mlp' drew a horizon of 3 steps, too short"):
        env.reset()
    env.close()
