"""Policy folders: what is saved plays as the network that was saved, and nothing in a folder is ever executed."""

import dataclasses
import io
import json
import pickle
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import cloning, policies
from lamjax.decoding import offline, online
from lamjax.decoding.offline import OfflineConfig
from lamjax.decoding.online import DecoderConfig, OnlineConfig
from lamjax.models.grid import GridConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig
from lamjax.models.policy import LatentPolicy
from lamjax.policies import DecodedPolicy, PolicyError, load_policy, save_policy
from lamjax.ppo import ActorCriticAgent
from lamjax.preprocess import normalise_obs
from lamjax.spaces import Box, Discrete

ACTIONS, LATENT = 6, 10
ONE_SENTENCE = r"^[^\n]+[^.]\.$"
IMPALA = ImpalaConfig(channels=(4, 6), strides=(2, 2), blocks=1, features=16, stem=2)
TRUNKS = {"images": (IMPALA, (16, 16, 3)), "vectors": (MLPConfig(hidden=(12,), features=9), (7,))}


def make_obs(shape):
    rng = np.random.default_rng(0)
    if len(shape) == 3:
        return rng.integers(0, 256, (5, *shape), np.uint8)
    return rng.normal(size=(5, *shape)).astype(np.float32)


def make_policy(kind, trunk, obs_shape):
    """A network of a kind with random weights: ``(network, params, logits [5, A] as its own code computes them)``."""
    obs = jnp.asarray(make_obs(obs_shape))
    key = jax.random.key(1)
    if kind == "actor_critic":
        network = ActorCriticAgent(trunk, ACTIONS)
        params = network.init(key, obs_shape)
        params["policy_head"]["kernel"] *= 100  # the start is so small that all logits look alike
        return network, params, network.network.apply({"params": params}, normalise_obs(obs))[0]
    state = cloning.init(key, cloning.CloningConfig(steps=10, trunk=trunk), obs_shape, LATENT)
    if kind == "decoded":
        config = OfflineConfig(steps=5, hidden=(8, 7))
        latents = LatentPolicy(trunk, LATENT).apply({"params": state.params}, normalise_obs(obs))[0]
        decoder, _ = offline.fit(key, latents, jnp.arange(5), config, ACTIONS)
        params = {"policy": state.params, "decoder": decoder}
        return DecodedPolicy(trunk, LATENT, ACTIONS, config), params, offline.decode(decoder, latents, config, ACTIONS)
    agent = online.make_agent(state, OnlineConfig(decoder=DecoderConfig(hidden=(8, 7))), ACTIONS)
    params, frozen = agent.init(key, state)
    params["policy_head"]["kernel"] = jax.random.normal(key, params["policy_head"]["kernel"].shape)
    logits, _ = agent.apply(params, agent.encode(frozen, obs))
    return agent, {"params": params, "frozen": frozen}, logits


@pytest.fixture(scope="module", params=[(kind, shape) for kind in policies.KINDS for shape in TRUNKS], ids="-".join)
def policy(request):
    kind, shape = request.param
    trunk, obs_shape = TRUNKS[shape]
    return kind, obs_shape, *make_policy(kind, trunk, obs_shape)


@pytest.fixture
def saved(tmp_path):
    """A small policy folder to be damaged."""
    network, params, _ = make_policy("actor_critic", *TRUNKS["vectors"])
    save_policy(tmp_path / "policy", network, params, {"env": "cartpole"})
    return tmp_path / "policy"


def flat(params):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def test_float32_comes_back_exactly(policy, tmp_path):
    kind, obs_shape, network, params, logits = policy
    info = {"env": "toy", "return_mean": 3.5, "episodes": 100, "command": "lamjax expert"}
    save_policy(tmp_path / "a" / "b", network, params, info)
    loaded_policy, loaded, loaded_info = load_policy(tmp_path / "a" / "b")
    assert loaded_info == info
    assert loaded_policy == network and hash(loaded_policy) == hash(network)
    ours, theirs = flat(loaded), flat(params)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == jnp.float32
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    found = loaded_policy(loaded, jnp.asarray(make_obs(obs_shape)))
    assert found.shape == (5, ACTIONS) and found.dtype == jnp.float32
    np.testing.assert_array_equal(found, logits)
    assert float(jnp.ptp(logits)) > 1e-2  # not a comparison of zeros
    # Under jit, as policies are played.
    jitted = jax.jit(loaded_policy)(loaded, jnp.asarray(make_obs(obs_shape)))
    np.testing.assert_allclose(jitted, logits, atol=1e-5)
    assert json.loads((tmp_path / "a" / "b" / "policy.json").read_text())["kind"] == kind


def test_networks_of_continuous_actions_come_back(tmp_path):
    space, (trunk, obs_shape) = Box((-2.0, 0.0), (2.0, 1.0)), TRUNKS["vectors"]
    network = ActorCriticAgent(trunk, space)
    params = network.init(jax.random.key(0), obs_shape)
    save_policy(tmp_path, network, params, {})
    loaded_policy, loaded, _ = load_policy(tmp_path)
    assert loaded_policy == network and loaded_policy.space == space
    assert loaded_policy(loaded, jnp.asarray(make_obs(obs_shape))).shape == (5, 4)


def test_notes_from_before_actions_could_be_continuous_are_read(saved):
    path = saved / "policy.json"
    note = json.loads(path.read_text())
    assert note["network"].pop("space") == {"type": "Discrete", "n": ACTIONS}
    note["network"]["num_actions"] = ACTIONS
    path.write_text(json.dumps(note))
    assert load_policy(saved)[0] == ActorCriticAgent(TRUNKS["vectors"][0], ACTIONS)


def test_float16_is_half_the_size_and_close(policy, tmp_path):
    _, obs_shape, network, params, logits = policy
    save_policy(tmp_path / "full", network, params, {})
    save_policy(tmp_path / "half", network, params, {}, dtype=np.float16)
    with np.load(tmp_path / "half" / "weights.npz", allow_pickle=False) as arrays:
        assert {arrays[name].dtype for name in arrays.files} == {np.dtype(np.float16)}
    loaded_policy, loaded, _ = load_policy(tmp_path / "half")
    assert {leaf.dtype for leaf in flat(loaded).values()} == {np.dtype(np.float32)}  # computed with in float32
    found = loaded_policy(loaded, jnp.asarray(make_obs(obs_shape)))
    np.testing.assert_allclose(found, logits, atol=5e-3 * float(jnp.abs(logits).max()))
    sizes = [(tmp_path / name / "weights.npz").stat().st_size for name in ("full", "half")]
    assert sizes[1] < sizes[0]


def test_equal_networks_are_one_function_for_jit():
    trunk, _ = TRUNKS["vectors"]
    a, b = ActorCriticAgent(trunk, 6), ActorCriticAgent(trunk, 6)
    other = ActorCriticAgent(trunk, 7)
    assert a == b and hash(a) == hash(b) and a != other
    assert policies.UniformPolicy(3) == policies.UniformPolicy(3) != policies.UniformPolicy(4)


def test_random_policy_is_uniform():
    logits = policies.UniformPolicy(4)({}, jnp.zeros((3, 8, 8, 3), jnp.uint8))
    np.testing.assert_allclose(jax.nn.softmax(logits), np.full((3, 4), 0.25))


def test_bfloat16_activations_are_not_part_of_the_file(tmp_path):
    trunk, obs_shape = TRUNKS["vectors"]
    agent = ActorCriticAgent(trunk, ACTIONS, jnp.bfloat16)
    save_policy(tmp_path / "p", agent, agent.init(jax.random.key(0), obs_shape), {})
    assert load_policy(tmp_path / "p")[0] == ActorCriticAgent(trunk, ACTIONS)


def test_an_older_policy_is_replaced(saved):
    network, params, _ = make_policy("decoded", *TRUNKS["vectors"])
    save_policy(saved, network, params, {"env": "other"})
    loaded_policy, loaded, info = load_policy(saved)
    assert (loaded_policy, info) == (network, {"env": "other"})
    assert flat(loaded).keys() == flat(params).keys()


# Damage


def refused(folder, match):
    with pytest.raises(PolicyError, match=match) as caught:
        load_policy(folder)
    assert re.match(ONE_SENTENCE, str(caught.value)), str(caught.value)
    assert str(folder) in str(caught.value)


def test_missing_files_are_named(saved, tmp_path):
    refused(tmp_path / "absent", r"no policy at .*: policy\.json is missing")
    (saved / "weights.npz").unlink()
    refused(saved, r"weights\.npz is missing")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "does not hold a policy")


@pytest.mark.parametrize("size", [0, 1, 100, -1, -30])
def test_cut_weights_are_refused(saved, size):
    path = saved / "weights.npz"
    path.write_bytes(path.read_bytes()[:size])
    refused(saved, "damaged")


def test_flipped_weights_are_refused(saved):
    path = saved / "weights.npz"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in members:
        # After the local header (30 bytes and the name) lies the compressed array.
        start = member.header_offset + 30 + len(member.filename) + 20
        flipped = bytearray(content)
        flipped[start + rng.integers(member.compress_size - 20)] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        refused(saved, "damaged")


@pytest.mark.parametrize("position", range(0, 60, 3))
def test_a_flipped_header_is_refused_or_harmless(saved, position):
    path = saved / "weights.npz"
    before = flat(load_policy(saved)[1])
    content = bytearray(path.read_bytes())
    content[position] ^= 0x21
    path.write_bytes(content)
    try:
        after = flat(load_policy(saved)[1])
    except PolicyError as error:
        assert "\n" not in str(error)
        return
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.pop("kind"),
        lambda note: note.pop("network"),
        lambda note: note.pop("info"),
        lambda note: note.update(kind="another"),
        lambda note: note.update(network=[1]),
        lambda note: note["network"].pop("space"),
        lambda note: note["network"].update(surprise=1),
        lambda note: note["network"]["trunk"].update(type="Popen"),
        lambda note: note["network"]["trunk"].update(surprise=1),
    ],
)
def test_a_foreign_note_is_refused(saved, change):
    path = saved / "policy.json"
    note = json.loads(path.read_text())
    change(note)
    path.write_text(json.dumps(note))
    refused(saved, "does not hold a policy of ours")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\xff"])
def test_a_note_that_is_not_ours_is_refused(saved, text):
    (saved / "policy.json").write_bytes(text.encode("latin-1"))
    refused(saved, "does not hold a policy of ours")


class Bomb:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was executed')",))


def test_pickles_are_never_read(saved):
    path = saved / "weights.npz"
    path.write_bytes(pickle.dumps(Bomb()))
    refused(saved, "damaged")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([Bomb()], object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy_head.kernel.npy", buffer.getvalue())
    refused(saved, "damaged")
    with np.load(path, allow_pickle=True) as arrays, pytest.raises(SystemExit):  # the bomb is a bomb
        arrays["policy_head.kernel"]


def test_weights_that_claim_more_than_their_file_holds_are_refused(saved):
    path = saved / "weights.npz"
    header = io.BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy_head.kernel.npy", header.getvalue() + bytes(8))
    refused(saved, "claims to have 4000000000000 bytes and has 8")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_weights_that_are_no_numbers_are_neither_written_nor_read(saved, tmp_path, value):
    network, params, info = load_policy(saved)
    spoilt = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(value), params)
    with pytest.raises(PolicyError, match=r"was not written: .* is not finite in float16"):
        save_policy(tmp_path / "other", network, spoilt, info, np.float16)
    assert not (tmp_path / "other").exists()
    if np.isfinite(value):  # 1e5 is a number of float32
        save_policy(tmp_path / "other", network, spoilt, info)
        assert jax.tree.all(jax.tree.map(np.array_equal, load_policy(tmp_path / "other")[1], spoilt))
        return
    with np.load(saved / "weights.npz") as file:
        arrays = {name: np.full_like(array, value) for name, array in file.items()}
    np.savez(saved / "weights.npz", **arrays)
    refused(saved, "is not finite")


def test_every_network_config_is_known_to_the_loader():
    """What a network's fields may hold can be written and read again."""
    for trunk in (ImpalaConfig(), GridConfig(), MLPConfig()):
        for space in (Discrete(3), Box((-1.0,), (1.0,))):
            network = DecodedPolicy(trunk, 4, space, OfflineConfig(labels=(1, 2)))
            note = json.loads(json.dumps(policies.describe(network)))
            assert policies.from_description(note) == network
    assert {field.name for field in dataclasses.fields(DecodedPolicy)} == {
        "trunk",
        "latent_dim",
        "space",
        "decoder",
    }
