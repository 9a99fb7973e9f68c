"""The policy and its file: what is written is read back, and nothing else is."""

import hashlib
import json
import math
import re
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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


NUM_BYTES, NUM_HEADERS = 1_500, 1_000
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
    info = PolicyInfo(
        families=("mlp", "digits"),
        preset="smoke",
        seed=3,
        decisions=1000,
        commit="abc",
        versions=library_versions(),
        provenance={"nested": {"sha256": "0" * 64, "tuple": (1, 2)}, "text": 'é"\\'},
    )
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
    digests = {
        make_policy(0).digest,
        make_policy(1).digest,
        make_policy(0, activation="relu").digest,
        make_policy(0, control=ControlConfig(lr_step=0.1)).digest,
        make_policy(0, info=PolicyInfo(seed=1)).digest,
    }
    assert len(digests) == 5
    assert make_policy(0).digest in digests


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


@pytest.mark.parametrize("shape", [(NUM_FEATURES,), (2, NUM_FEATURES + 1), (1, 2, NUM_FEATURES)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"features must have shape \(n, 32\), but got"):
        make_policy().act(np.zeros(shape))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one layer"),
        ([(np.zeros((3, 5)), np.zeros(3))], r"weight of shape \(3, 32\)"),
        ([(np.zeros((4, NUM_FEATURES)), np.zeros(4))], r"weight of shape \(3, 32\)"),
        ([(np.zeros((3, NUM_FEATURES)), np.zeros(4))], r"bias of shape"),
        ([(np.zeros((3, NUM_FEATURES)), np.array(0.0))], r"bias of shape"),
        ([(np.full((3, NUM_FEATURES), np.nan), np.zeros(3))], "not finite"),
        ([(np.full((3, NUM_FEATURES), 1e300), np.zeros(3))], "not finite"),  # not in float32
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_networks_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        Policy(layers)


# -- files that are not to be read ------------------------------------------------------------


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no policy file .*nowhere"):
        load_policy(tmp_path / "nowhere")


def test_folder_and_foreign_files(tmp_path):
    with pytest.raises(PolicyFileError, match="is a folder"):
        load_policy(tmp_path)
    foreign = {
        "empty": b"",
        "short": b"abc",
        "text": b"lr = 0.1\n" * 100,
        "safetensors": save({"a": np.zeros(3)}, metadata={"format": "pt"}),
        "pickle": b"\x80\x04cposix\nsystem\n(S'touch boom'\ntR." + bytes(200),
    }
    torch.save({"a": torch.zeros(3)}, tmp_path / "torch")
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
    for name in (*foreign, "torch"):
        with pytest.raises(PolicyFileError, match=f"{name} is not a pacesetter policy"):
            load_policy(tmp_path / name)


def test_cut_and_lengthened_files_are_refused():
    data = make_policy().to_bytes()
    for length in {0, 1, 7, 8, 9, 60, 130, *range(0, len(data), 97), len(data) - 1}:
        with pytest.raises(PolicyFileError, match="cut short"):
            parse_policy(data[:length], source="file")
    with pytest.raises(PolicyFileError, match="was altered"):
        parse_policy(data + b"\0", source="file")


@given(st.binary(max_size=400), st.integers(0, 120))
def test_no_bytes_crash_the_reader(noise, keep):
    with pytest.raises(PolicyFileError):
        parse_policy(make_policy().to_bytes()[:keep] + noise, source="file")


def test_newer_schema_asks_for_an_upgrade():
    tensors, header = parts()
    header["schema_version"] = 3
    with pytest.raises(PolicyFileError, match=r"schema version 3, .* reads 2: upgrade"):
        parse_policy(seal(tensors, header)[0], source="file")


def other_features(change):
    tensors, header = parts()
    change(header["features"])
    return seal(tensors, header)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[0].__setitem__(0, "new"), "unknown here: new; missing there: progress"),
        (lambda f: f[1].__setitem__(2, 9.0), "scaled otherwise: log_horizon"),
        (lambda f: f.pop(), "missing there: valid_gap"),
        (lambda f: f.reverse(), "another order"),
        (lambda f: f.__setitem__(0, 3), "unreadable"),
        (lambda f: f.__setitem__(0, [["x"], 1, 2]), "unknown here"),
    ],
)
def test_other_features_are_refused_by_name(change, message):
    with pytest.raises(PolicyFileError, match=message):
        parse_policy(other_features(change), source="file")


def test_other_encoding_is_refused():
    tensors, header = parts()
    header["encoding"]["smoothing"] = 0.5
    with pytest.raises(PolicyFileError, match="order or encoding"):
        parse_policy(seal(tensors, header)[0], source="file")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("schema_version", 1, "schema version 1, .* reads 2: train it anew"),
        ("schema_version", "2", "schema version '2'"),
        ("schema_version", True, "schema version True"),
        ("activation", "gelu", "activation"),
        ("control", {"lr_step": 1}, "control must hold"),
    ],
)
def test_headers_that_make_no_sense_are_refused(name, value, message):
    tensors, header = parts()
    header[name] = value
    with pytest.raises(PolicyFileError, match=message):
        parse_policy(seal(tensors, header)[0], source="file")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_intervals", 0),
        ("lr_step", 10**400),
        ("lr_step", -1.0),
        ("lr_bounds", [2.0, 1.0]),
        ("ramp_start", -0.1),
        ("final_decay", 2.0),
        ("clip_ratio_start", 0.0),
        ("one_minus_momentum_bounds", [0.5, 1.5]),
    ],
)
def test_controls_that_make_no_sense_are_refused(name, value):
    tensors, header = parts()
    header["control"][name] = value
    with pytest.raises(PolicyFileError, match=name):
        parse_policy(seal(tensors, header)[0], source="file")


def test_tensors_that_do_not_fit_are_refused():
    tensors, header = parts()
    broken = {
        "lacks 'layers.0.bias'": {"layers.0.bias": None},
        "unknown tensors": {"extra": np.zeros(3, np.float32)},
        "layer 1 needs": {"layers.1.weight": np.zeros((4, 6), np.float32)},
        "not finite": {"layers.2.bias": np.array([0, np.inf, 0], np.float32)},
        "layer 2 needs": {"layers.2.bias": np.zeros((), np.float32)},
    }
    for message, change in broken.items():
        new = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        with pytest.raises(PolicyFileError, match=message):
            parse_policy(seal(new, header)[0], source="file")


def resealed(data):
    """The file with a digest that fits, as an attacker would make it."""
    place = SEALED.search(data)
    if place is None:
        return data
    blank = data[: place.start(1)] + b"0" * 64 + data[place.end(1) :]
    digest = hashlib.sha256(blank).hexdigest().encode()
    return data[: place.start(1)] + digest + data[place.end(1) :]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb"lr_step\"", rb"lr_step  "),  # the inner JSON breaks
        (b'"data_offsets"', b'"data_offsetz"'),
        (b'"shape":[5,32]', b'"shape":[9,32]'),
        (b'"F32"', b'"F99"'),
        (b'"F32"', b'"I32"'),
        (rb":null", rb":-NaN"[:5]),
        (rb"null", rb" NaN"),
        (rb"0.35", rb"9e99"),
    ],
)
def test_no_mutation_under_a_seal_that_fits_crashes(old, new):
    good = make_policy().to_bytes()
    assert parse_policy(resealed(good), source="file").digest == make_policy().digest
    assert old in good
    assert len(old) == len(new)
    try:
        policy = parse_policy(resealed(good.replace(old, new, 1)), source="file")
    except PolicyFileError:
        return
    assert np.isfinite(policy.act(np.ones((1, NUM_FEATURES)))).all()


def test_header_refuses_what_json_cannot_hold():
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_policy(info=PolicyInfo(provenance={"a": math.nan})).to_bytes()
    with pytest.raises(TypeError):
        make_policy(info=PolicyInfo(provenance={"a": object()})).to_bytes()


# -- thousands of broken files: none crashes the reader, loads, or runs code --------------------


@pytest.fixture(scope="module")
def policies():
    features = np.random.default_rng(1).normal(size=(300, NUM_FEATURES))
    meter = fit_familiarity(features, runs=np.arange(300) // 10)
    info = PolicyInfo(families=("a", "b"), preset="smoke", seed=1, decisions=5, versions={"x": "1"})
    return [make_policy(info=info, familiarity=each) for each in (None, meter)]


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
        for length in rng.integers(200, len(data), 200).tolist():
            assert watch.loads(resealed(data[:length])) is None


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


# -- the shipped policy -----------------------------------------------------------------------


def test_default_is_the_file_in_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(policy_module.resources, "files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match="pacesetter train --preset laptop"):
        load_policy()
    saved = make_policy(info=PolicyInfo(preset="laptop"))
    save_policy(saved, tmp_path / "policies" / "default.safetensors")
    assert load_policy("default").digest == saved.digest
