"""The policy and its file: what is written is read back, and nothing else is."""

import hashlib
import json
import math
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from pacesetter.agent.policy import file as sealed_file
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
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import FEATURE_NAMES, NUM_FEATURES


def make_policy(seed=0, *, activation="tanh", **kwargs):
    rng = np.random.default_rng(seed)
    shapes = [(5, NUM_FEATURES), (4, 5), (3, 4)]
    layers = [(rng.normal(size=s), rng.normal(size=s[0])) for s in shapes]
    return Policy(layers, activation=activation, **kwargs)


def parts():
    """Tensors and header of a good file, to break one thing at a time."""
    policy = make_policy()
    header = {k: v for k, v in policy.header.items() if k != "sha256"}
    tensors = {}
    for i, (weight, bias) in enumerate(policy.layers):
        tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"] = weight, bias
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


def test_doing_nothing():
    assert not Policy.do_nothing().act(np.random.default_rng(0).normal(size=(9, 32))).any()


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


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"'tanh', 'relu'.*'gelu'"):
        make_policy(activation="gelu")


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
        with pytest.raises(PolicyFileError, match=f"{name} is (not a pacesetter policy|cut short)"):
            load_policy(tmp_path / name)


def test_any_changed_byte_is_refused():
    data = make_policy().to_bytes()
    rng = np.random.default_rng(0)
    for position in {*range(150), *rng.integers(len(data), size=700).tolist()}:
        changed = bytearray(data)
        changed[position] ^= int(rng.integers(1, 256))
        with pytest.raises(PolicyFileError):
            parse_policy(bytes(changed), source="file")


def test_cut_and_lengthened_files_are_refused():
    data = make_policy().to_bytes()
    for length in {0, 1, 7, 8, 9, 60, 130, *range(0, len(data), 97), len(data) - 1}:
        with pytest.raises(PolicyFileError, match="file is cut short"):
            parse_policy(data[:length], source="file")
    with pytest.raises(PolicyFileError, match="was altered"):
        parse_policy(data + b"\0", source="file")


def test_capital_letters_in_the_digest_are_refused():
    data = make_policy().to_bytes()
    digest = make_policy().digest.encode()
    assert digest != digest.upper()
    with pytest.raises(PolicyFileError, match="was altered"):
        parse_policy(data.replace(digest, digest.upper()), source="file")


@given(st.binary(max_size=400), st.integers(0, 120))
def test_no_bytes_crash_the_reader(noise, keep):
    with pytest.raises(PolicyFileError):
        parse_policy(make_policy().to_bytes()[:keep] + noise, source="file")


def test_newer_schema_asks_for_an_upgrade():
    tensors, header = parts()
    header["schema_version"] = 3
    with pytest.raises(PolicyFileError, match=r"schema version 3, .* reads up to 2: upgrade"):
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
        ("schema_version", "1", "not a pacesetter policy"),
        ("schema_version", True, "not a pacesetter policy"),
        ("features", None, "other features"),
        ("activation", "gelu", "activation"),
        ("activation", ["tanh"], "activation"),
        ("control", None, "control must hold"),
        ("control", {"lr_step": 1}, "control must hold"),
        ("families", 3, "cannot be used"),
    ],
)
def test_headers_that_make_no_sense_are_refused(name, value, message):
    tensors, header = parts()
    header[name] = value
    with pytest.raises(PolicyFileError, match=message):
        parse_policy(seal(tensors, header)[0], source="file")


@pytest.mark.parametrize("name", ["activation", "control", "families", "seed"])
def test_headers_that_lack_something_are_refused(name):
    tensors, header = parts()
    del header[name]
    with pytest.raises(PolicyFileError, match=name):
        parse_policy(seal(tensors, header)[0], source="file")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_intervals", 40.0),
        ("num_intervals", 0),
        ("lr_step", "much"),
        ("lr_step", True),
        ("lr_step", 10**400),
        ("lr_step", -1.0),
        ("lr_bounds", [1.0]),
        ("lr_bounds", 1.0),
        ("lr_bounds", [2.0, 1.0]),
        ("ramp_start", [0.1]),
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
    """The file with a seal that fits, as an attacker would make it."""
    start, end = sealed_file._DIGEST_START, sealed_file._DIGEST_END
    blank = data[:start] + b"0" * 64 + data[end:]
    return data[:start] + hashlib.sha256(blank).hexdigest().encode() + data[end:]


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


@given(st.integers(8, 5000), st.integers(0, 255))
def test_no_byte_under_a_seal_that_fits_crashes(position, byte):
    data = bytearray(make_policy().to_bytes())
    data[position % len(data)] = byte
    try:
        policy = parse_policy(resealed(bytes(data)), source="file")
    except PolicyFileError:
        return
    assert np.isfinite(policy.act(np.ones((1, NUM_FEATURES)))).all()


def test_header_refuses_what_json_cannot_hold():
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_policy(info=PolicyInfo(provenance={"a": math.nan})).to_bytes()
    with pytest.raises(TypeError):
        make_policy(info=PolicyInfo(provenance={"a": object()})).to_bytes()


# -- files of older schema versions -----------------------------------------------------------

OLD = Path(__file__).parent / "data" / "policy-v1.safetensors"


def test_a_file_of_version_1_keeps_loading():
    policy = load_policy(OLD)
    assert policy.digest == "a3eb12b940accadd1f1451bb85ba5d9f985cb6229872b0bc05b4f830b00d496b"
    assert policy.control == ControlConfig(decision_power=1.0)  # its intervals were equal
    assert policy.familiarity is None
    assert policy.header["schema_version"] == 1
    assert policy.to_bytes() == OLD.read_bytes()
    features = np.linspace(-1, 1, 2 * NUM_FEATURES).reshape(2, NUM_FEATURES)
    assert policy.act(features) == pytest.approx(
        np.array([[0.1481524592, 1.0, -1.0], [-0.0029770381, 0.4866053449, -0.1693542185]]),
        abs=1e-9,
    )


def test_version_1_knows_nothing_of_version_2():
    tensors, header = parts()
    header["schema_version"] = 1
    with pytest.raises(PolicyFileError, match="control must hold"):
        parse_policy(seal(tensors, header)[0], source="file")
    del header["control"]["decision_power"]
    assert parse_policy(seal(tensors, header)[0], source="file").control.decision_power == 1.0


@pytest.mark.parametrize("name", ["familiarity", "decision_power"])
def test_version_2_must_carry_what_it_added(name):
    tensors, header = parts()
    (header if name in header else header["control"]).pop(name)
    with pytest.raises(PolicyFileError, match=name):
        parse_policy(seal(tensors, header)[0], source="file")


# -- the shipped policy -----------------------------------------------------------------------


def test_default_is_the_file_in_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(policy_module.resources, "files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match="pacesetter train --preset laptop"):
        load_policy()
    saved = make_policy(info=PolicyInfo(preset="laptop"))
    save_policy(saved, tmp_path / "policies" / "default.safetensors")
    assert load_policy("default").digest == saved.digest


def test_control_survives_json():
    control = replace(ControlConfig(), lr_step=0.1 + 0.2)
    again = parse_policy(make_policy(control=control).to_bytes(), source="x").control
    assert again == control
    assert json.dumps(make_policy(control=control).header)
