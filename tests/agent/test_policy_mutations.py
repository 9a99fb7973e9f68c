"""Ten thousand broken policy files: none crashes the reader, none loads, none runs code."""

import hashlib
import json
import sys

import numpy as np
import pytest

from pacesetter.agent.policy import file as sealed_file
from pacesetter.agent.policy.file import seal
from pacesetter.agent.policy.policy import Policy, PolicyFileError, PolicyInfo, parse_policy
from pacesetter.agent.training.familiarity_fit import fit_familiarity
from pacesetter.envs.features import NUM_FEATURES

NUM_BYTES, NUM_HEADERS = 8_000, 2_000
GOOD_TOO = {"preset": ("str", "NoneType"), "commit": ("str", "NoneType"), "seed": ("NoneType",)}
"""Kinds of values that make another good header: such an edit breaks nothing."""
STRANGE = (None, True, -1, 10**400, "x", "__import__('os').system('true')", [], [[]], {})


def a_policy(familiarity):
    rng = np.random.default_rng(0)
    layers = [(rng.normal(size=(6, NUM_FEATURES)), rng.normal(size=6))]
    layers += [(rng.normal(size=(3, 6)), rng.normal(size=3))]
    info = PolicyInfo(families=("a", "b"), preset="smoke", seed=1, decisions=5, versions={"x": "1"})
    return Policy(layers, info=info, familiarity=familiarity)


@pytest.fixture(scope="module")
def policies():
    features = np.random.default_rng(1).normal(size=(300, NUM_FEATURES))
    meter = fit_familiarity(features, runs=np.arange(300) // 10)
    return [a_policy(None), a_policy(meter)]


class Watch:
    """Records what Python's own audit sees of code that is compiled, run or started."""

    EVENTS = ("compile", "exec", "os.system", "os.exec", "subprocess.Popen", "pickle.find_class")

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self)  # can never be taken off, only silenced

    def __call__(self, event, args):
        if self.on and event in self.EVENTS:
            self.seen.append(event)

    def loads(self, data):
        """The policy of a file, or None if it is refused as it should be."""
        self.on = True
        try:
            return parse_policy(data, source="file")
        except PolicyFileError:
            return None
        finally:
            self.on = False


@pytest.fixture(scope="module")
def watch(policies):
    watch = Watch()
    parse_policy(policies[1].to_bytes(), source="file")  # imports whatever it needs
    yield watch
    assert watch.seen == []
    watch.loads(b"")
    watch.on = True
    compile("1", "", "eval")
    watch.on = False
    assert watch.seen == ["compile"]  # it would have noticed


def resealed(data):
    start, end = sealed_file._DIGEST_START, sealed_file._DIGEST_END
    blank = data[:start] + b"0" * 64 + data[end:]
    return data[:start] + hashlib.sha256(blank).hexdigest().encode() + data[end:]


def broken_bytes(data, rng):
    """One file with bytes flipped, cut, put in, taken out or swapped."""
    a, b = sorted(rng.integers(0, len(data), 2).tolist())
    kind = rng.integers(6)
    if kind == 0:
        flipped = bytearray(data)
        for position in rng.integers(0, len(data), rng.integers(1, 9)).tolist():
            flipped[position] ^= 1 << int(rng.integers(8))
        return bytes(flipped)
    if kind == 1:
        return data[:a]
    if kind == 2:
        return data[:a] + rng.bytes(int(rng.integers(1, 65))) + data[a:]
    if kind == 3:
        return data[:a] + data[min(b, a + 64) + 1 :]
    if kind == 4:
        size = max(1, min(64, (b - a) // 2))
        return (
            data[:a]
            + data[b : b + size]
            + data[a + size : b]
            + data[a : a + size]
            + data[b + size :]
        )
    return data[:a] + bytes(min(64, len(data) - a)) + data[a + 64 :]


def test_no_file_with_broken_bytes_loads(policies, watch):
    rng = np.random.default_rng(2)
    tried = 0
    files = [p.to_bytes() for p in policies]
    while tried < NUM_BYTES:
        data = files[tried % len(files)]
        broken = broken_bytes(data, rng)
        if broken == data:
            continue
        tried += 1
        assert watch.loads(broken) is None


def test_no_cut_file_loads_under_a_seal_that_fits(policies, watch):
    rng = np.random.default_rng(3)
    for data in (p.to_bytes() for p in policies):
        for length in rng.integers(sealed_file._DIGEST_END, len(data), 200).tolist():
            assert watch.loads(resealed(data[:length])) is None


def parts(policy):
    header = {k: v for k, v in policy.header.items() if k != "sha256"}
    tensors = {}
    for i, (weight, bias) in enumerate(policy.layers):
        tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"] = weight, bias
    if policy.familiarity is not None:
        tensors |= policy.familiarity.tensors()
    return tensors, header


def places(value, path=()):
    """Paths to every entry of a header whose type matters; origin's free text is left out."""
    for key in value if isinstance(value, dict) else range(len(value)):
        if key in ("provenance", "versions"):
            continue
        yield (*path, key)
        if isinstance(value[key], (dict, list)):
            yield from places(value[key], (*path, key))


def broken_parts(policy, rng):
    """Tensors and header with one thing wrong, to be sealed as an attacker would."""
    tensors, header = parts(policy)
    header = json.loads(json.dumps(header))
    if rng.random() < 0.4:
        name = str(rng.choice(sorted(tensors)))
        array = np.array(tensors[name])
        kind = rng.integers(5)
        if kind == 0:
            del tensors[name]
        elif kind == 1:
            array.flat[rng.integers(array.size)] = rng.choice([np.nan, np.inf, -np.inf])
            tensors[name] = array
        elif kind == 2:
            tensors[name] = np.concatenate([array, array])
        elif kind == 3:
            tensors[name] = array.astype(np.float64)
        else:
            tensors[f"more.{name}"] = array
        return tensors, header
    every = list(places(header))
    *path, key = every[rng.integers(len(every))]
    owner = header
    for step in path:
        owner = owner[step]
    if rng.random() < 0.3 and isinstance(owner, dict):
        del owner[key]
        return tensors, header
    old = owner[key]
    # Another number or text may be as good as the old one; another type never is.
    kinds = {kind_of(old), *GOOD_TOO.get(key, ())}
    candidates = [v for v in STRANGE if kind_of(v) not in kinds]
    owner[key] = candidates[rng.integers(len(candidates))]
    return tensors, header


def kind_of(value):
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def test_no_file_with_a_broken_header_or_tensor_loads_under_a_seal_that_fits(policies, watch):
    rng = np.random.default_rng(4)
    tried = 0
    while tried < NUM_HEADERS:
        tensors, header = broken_parts(policies[tried % 2], rng)
        tried += 1
        policy = watch.loads(seal(tensors, header)[0])
        assert policy is None, policy.header


def test_the_files_that_were_broken_are_good(policies, watch):
    for policy in policies:
        assert parse_policy(policy.to_bytes(), source="file").digest == policy.digest
        assert parse_policy(resealed(policy.to_bytes()), source="file").header == policy.header
        assert parse_policy(seal(*parts(policy))[0], source="file").digest == policy.digest
