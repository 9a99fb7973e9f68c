"""The policy and its file: what is written is read back, and nothing else is."""

import hashlib
import json
import math
import re
from importlib import metadata

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from pacesetter.agent.policy import policy as policy_module
from pacesetter.agent.policy.file import seal
from pacesetter.agent.policy.policy import (
    Policy,
    PolicyFileError,
    PolicyInfo,
    library_versions,
    load_policy,
    parse_policy,
    save_policy,
)
from pacesetter.agent.training.meter import fit_familiarity
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import FEATURE_NAMES, NUM_FEATURES

SEALED = re.compile(rb"sha256.{5}([0-9a-f]{64})")
GOOD_TOO = {"preset": ("str", "NoneType"), "commit": ("str", "NoneType"), "seed": ("NoneType",)}
"""Kinds of values that make another good header: such an edit breaks nothing."""
STRANGE = (None, True, -1, 10**400, "x", "__import__('os').system('true')", [], [[]], {})


def make_policy(seed=0, *, activation="tanh", **kwargs):
    rng = np.random.default_rng(seed)
    shapes = [(5, NUM_FEATURES), (4, 5), (3, 4)]
    layers = [(rng.normal(size=s), rng.normal(size=s[0])) for s in shapes]
    return Policy(layers, activation=activation, **kwargs)


def parts(policy=None):
    """Tensors and header of a good file, to break one thing at a time."""
    policy = policy or make_policy()
    header = {k: v for k, v in policy.header.items() if k != "sha256"}
    tensors = {}
    for i, (weight, bias) in enumerate(policy.layers):
        tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"] = weight, bias
    if policy.familiarity is not None:
        tensors |= policy.familiarity.tensors()
    return tensors, header


def test_file_gives_back_the_policy(tmp_path):
    control = ControlConfig(num_intervals=7, lr_bounds=(0.5, 2.0))
    known = {"preset": "smoke", "seed": 3, "decisions": 1000, "commit": "abc"}
    provenance = {"nested": {"sha256": "0" * 64, "tuple": (1, 2)}, "text": 'é"\\'}
    more = {"versions": library_versions(), "provenance": provenance}
    info = PolicyInfo(families=("mlp", "digits"), **known, **more)
    policy = make_policy(control=control, info=info)
    path = save_policy(policy, tmp_path / "new" / "p.safetensors")
    loaded = load_policy(path)
    x = np.random.default_rng(1).normal(size=(20, NUM_FEATURES))
    assert np.array_equal(loaded.act(x), policy.act(x))
    assert loaded.control == control
    assert loaded.header == policy.header
    assert loaded.digest == policy.digest == loaded.header["sha256"]
    assert loaded.to_bytes() == path.read_bytes()
    assert loaded.header["features"][0][0] == FEATURE_NAMES[0]
    assert loaded.header["decisions"] == 1000
    assert loaded.header["versions"]["torch"] == metadata.version("torch")
    assert [p.name for p in path.parent.iterdir()] == ["p.safetensors"]  # nothing temporary left


def test_digest_tells_policies_apart():
    changes = ({}, {"seed": 1}, {"activation": "relu"}, {"info": PolicyInfo(seed=1)})
    policies = [make_policy(**c) for c in (*changes, {"control": ControlConfig(lr_step=0.1)})]
    assert len({policy.digest for policy in policies}) == 5
    assert make_policy().digest == policies[0].digest


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_actions_equal_those_computed_by_hand(activation):
    policy = make_policy(activation=activation)
    features = np.random.default_rng(2).uniform(-1, 1, size=NUM_FEATURES)
    x = features.tolist()
    for i, (weight, bias) in enumerate(policy.layers):
        rows = zip(weight.tolist(), bias.tolist(), strict=True)
        x = [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in rows]
        if i < len(policy.layers) - 1:
            x = [math.tanh(v) if activation == "tanh" else max(v, 0.0) for v in x]
    expected = [min(max(v, -1.0), 1.0) for v in x]
    assert policy.act(features[None])[0] == pytest.approx(expected, abs=1e-12)


def test_actions_are_bounded_whatever_the_weights():
    huge = [(np.full((4, NUM_FEATURES), 3e38), np.zeros(4))]
    huge += [(np.full((4, 4), 3e38), np.zeros(4))] * 9 + [(np.full((3, 4), -3e38), np.ones(3))]
    actions = Policy(huge, activation="relu").act(np.ones((2, NUM_FEATURES)))
    assert np.isfinite(actions).all()
    assert (np.abs(actions) <= 1).all()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_features_and_networks_that_do_not_fit_are_refused():
    for shape in ((NUM_FEATURES,), (2, NUM_FEATURES + 1), (1, 2, NUM_FEATURES)):
        with pytest.raises(ValueError, match=r"features must have shape \(n, 32\), but got"):
            make_policy().act(np.zeros(shape))
    good = np.zeros((3, NUM_FEATURES))
    for layers, message in (
        ([], "at least one layer"),
        ([(np.zeros((3, 5)), np.zeros(3))], r"weight of shape \(3, 32\)"),
        ([(np.zeros((4, NUM_FEATURES)), np.zeros(4))], r"weight of shape \(3, 32\)"),
        ([(good, np.zeros(4))], r"bias of shape"),
        ([(good, np.array(0.0))], r"bias of shape"),
        ([(good * np.nan, np.zeros(3))], "not finite"),
        ([(good + 1e300, np.zeros(3))], "not finite"),  # not in float32
    ):
        with pytest.raises(ValueError, match=message):
            Policy(layers)


# -- files that are not to be read ------------------------------------------------------------


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no policy file .*nowhere"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(PolicyFileError, match="is a folder"):
        load_policy(tmp_path)
    torch.save({"a": torch.zeros(3)}, tmp_path / "torch")
    foreign = {
        "torch": (tmp_path / "torch").read_bytes(),
        "empty": b"",
        "text": b"lr = 0.1\n" * 100,
        "safetensors": save({"a": np.zeros(3)}, metadata={"format": "pt"}),
        "pickle": b"\x80\x04cposix\nsystem\n(S'touch boom'\ntR." + bytes(200),
    }
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PolicyFileError, match=f"{name} is not a pacesetter policy"):
            load_policy(tmp_path / name)


def test_cut_and_lengthened_files_are_refused():
    data = make_policy().to_bytes()
    for length in (0, 1, 7, 8, 9, 60, 130, 1000, len(data) - 1):
        with pytest.raises(PolicyFileError, match="cut short"):
            parse_policy(data[:length], source="file")
    with pytest.raises(PolicyFileError, match="was altered"):
        parse_policy(data + b"\0", source="file")


def edit(*path, to):
    """Sets one entry of the tensors and the header; None takes it out."""

    def change(tensors, header):
        owner = tensors if path[0] in tensors or path[0] == "extra" else header
        for step in path[:-1]:
            owner = owner[step]
        if to is None:
            del owner[path[-1]]
        else:
            owner[path[-1]] = to

    return change


def zeros(*shape, last=0.0):
    array = np.zeros(shape, np.float32)
    array.flat[-1] = last
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("schema_version", to=3), r"schema version 3, .* reads 2: upgrade"),
        (edit("schema_version", to=1), "schema version 1, .* reads 2: train it anew"),
        (edit("schema_version", to="2"), "schema version '2'"),
        (edit("activation", to="gelu"), "activation"),
        (edit("encoding", "smoothing", to=0.5), "order or encoding"),
        (edit("features", 0, 0, to="new"), "unknown here: new; missing there: progress"),
        (edit("features", 1, 2, to=9.0), "scaled otherwise: log_horizon"),
        (edit("features", -1, to=None), "missing there: valid_gap"),
        (lambda _, header: header["features"].reverse(), "another order"),
        (edit("features", 0, to=3), "unreadable"),
        (edit("features", 0, to=[["x"], 1, 2]), "unknown here"),
        (edit("control", to={"lr_step": 1}), "control must hold"),
        (edit("control", "num_intervals", to=0), "num_intervals"),
        (edit("control", "lr_step", to=10**400), "lr_step"),
        (edit("layers.0.bias", to=None), "lacks 'layers.0.bias'"),
        (edit("extra", to=zeros(3)), "unknown tensors"),
        (edit("layers.1.weight", to=zeros(4, 6)), "layer 1 needs"),
        (edit("layers.2.bias", to=zeros()), "layer 2 needs"),
        (edit("layers.2.bias", to=zeros(3, last=np.inf)), "not finite"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    tensors, header = parts()
    header = json.loads(json.dumps(header))
    change(tensors, header)
    with pytest.raises(PolicyFileError, match=message):
        parse_policy(seal(tensors, header)[0], source="file")


def resealed(data):
    """The file with a digest that fits, as an attacker would make it."""
    place = SEALED.search(data)
    if place is None:
        return data
    first, last = place.span(1)
    digest = hashlib.sha256(data[:first] + b"0" * 64 + data[last:]).hexdigest().encode()
    return data[:first] + digest + data[last:]


def test_no_mutation_under_a_seal_that_fits_loads():
    good = make_policy().to_bytes()
    assert parse_policy(resealed(good), source="file").digest == make_policy().digest
    for old, new in (
        (rb"lr_step\"", rb"lr_step  "),  # the inner JSON breaks
        (b'"data_offsets"', b'"data_offsetz"'),
        (b'"shape":[5,32]', b'"shape":[9,32]'),
        (b'"F32"', b'"F99"'),
        (b'"F32"', b'"I32"'),
        (b":null", b": NaN"),
    ):
        assert old in good
        with pytest.raises(PolicyFileError):
            parse_policy(resealed(good.replace(old, new, 1)), source="file")


def test_header_refuses_what_json_cannot_hold():
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_policy(info=PolicyInfo(provenance={"a": math.nan})).to_bytes()
    with pytest.raises(TypeError):
        make_policy(info=PolicyInfo(provenance={"a": object()})).to_bytes()


# -- thousands of broken files: none crashes the reader, or loads -------------------------------


@pytest.fixture(scope="module")
def policies():
    features = np.random.default_rng(1).normal(size=(300, NUM_FEATURES))
    meter = fit_familiarity(features, runs=np.arange(300) // 10)
    info = PolicyInfo(families=("a", "b"), preset="smoke", seed=1, decisions=5, versions={"x": "1"})
    return [make_policy(info=info, familiarity=each) for each in (None, meter)]


def loads(data):
    """The policy of a file, or None if it is refused as it should be."""
    try:
        return parse_policy(data, source="file")
    except PolicyFileError:
        return None


def broken_bytes(data, rng):
    """One file with bytes flipped, cut, put in, taken out, swapped or blanked."""
    a, b = sorted(rng.integers(0, len(data), 2).tolist())
    size = max(1, min(64, (b - a) // 2))
    flipped = bytearray(data)
    for position in rng.integers(0, len(data), rng.integers(1, 9)).tolist():
        flipped[position] ^= 1 << int(rng.integers(8))
    swapped = data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    ways = (
        bytes(flipped),
        data[:a],
        data[:a] + rng.bytes(size) + data[a:],
        data[:a] + data[min(b, a + 64) + 1 :],
        data[:a] + swapped,
        data[:a] + bytes(min(64, len(data) - a)) + data[a + 64 :],
    )
    return ways[rng.integers(len(ways))]


def test_no_file_with_broken_bytes_loads(policies):
    rng = np.random.default_rng(2)
    files = [policy.to_bytes() for policy in policies]
    for tried in range(1000):
        data = files[tried % len(files)]
        broken = broken_bytes(data, rng)
        assert broken == data or loads(broken) is None
    for data in files:
        for length in rng.integers(200, len(data), 200).tolist():
            assert loads(resealed(data[:length])) is None


def places(value, path=()):
    """Paths to every entry of a header whose type matters; origin's free text is left out."""
    for key in value if isinstance(value, dict) else range(len(value)):
        if key in ("provenance", "versions"):
            continue
        yield (*path, key)
        if isinstance(value[key], (dict, list)):
            yield from places(value[key], (*path, key))


def kind_of(value):
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def broken_parts(policy):
    """Tensors and headers with one thing wrong each, to be sealed as an attacker would."""
    tensors, header = parts(policy)
    for name, array in tensors.items():
        yield {k: v for k, v in tensors.items() if k != name}, header
        yield {**tensors, f"more.{name}": array}, header
        unfinite = np.array(array)
        unfinite.flat[-1] = np.nan
        for wrong in (unfinite, np.concatenate([array, array]), array.astype(np.float64)):
            yield {**tensors, name: wrong}, header
    text = json.dumps(header)
    for *path, key in places(json.loads(text)):
        header = owner = json.loads(text)
        for step in path:
            owner = owner[step]
        # Another number or text may be as good as the old one; another type never is.
        kinds = {kind_of(owner[key]), *GOOD_TOO.get(key, ())}
        for value in STRANGE:
            if kind_of(value) not in kinds:
                owner[key] = value
                yield tensors, header
        if isinstance(owner, dict):
            del owner[key]
            yield tensors, header


def test_no_file_with_a_broken_header_or_tensor_loads_under_a_seal_that_fits(policies):
    for tensors, header in (broken for policy in policies for broken in broken_parts(policy)):
        policy = loads(seal(tensors, header)[0])
        assert policy is None, policy.header


# -- the shipped policy -----------------------------------------------------------------------


def test_default_is_the_file_in_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(policy_module.resources, "files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match="pacesetter train --preset laptop"):
        load_policy()
    saved = make_policy(info=PolicyInfo(preset="laptop"))
    save_policy(saved, tmp_path / "policies" / "default.safetensors")
    assert load_policy("default").digest == saved.digest
