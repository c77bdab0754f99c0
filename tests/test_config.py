"""Presets are values: valid, hashable, written down as JSON, documented to the last field, and asked for by nobody."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import pytest

import lamjax
from lamjax import cli
from lamjax.config import AnalysisConfig, RunConfig, ScratchConfig
from lamjax.decoding.hybrid import HybridAgent
from lamjax.decoding.online import DecoderConfig, OnlineConfig, collects, refits
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig
from lamjax.policies import DecodedPolicy
from lamjax.ppo import ActorCriticAgent, PPOConfig
from lamjax.presets import (
    GRID_PRESETS,
    OWN_PRESETS,
    PRESET_NOTES,
    PRESETS,
    VECTOR_PRESETS,
    default_preset,
    presets_for,
    with_dtype,
)
from lamjax.training import checkpoint
from lamjax.training.run_folder import Run, Saver

SOURCE = Path(lamjax.__file__).parent
FRAME = 64  # pixels of a side of Procgen's frames
TABLES = {"images": PRESETS, "grids": GRID_PRESETS, "vectors": VECTOR_PRESETS, **OWN_PRESETS}
ALL = {f"{kind}-{name}": preset for kind, table in TABLES.items() for name, preset in table.items()}


def parts(value, name=""):
    """Every config dataclass inside a value, by its dotted name."""
    yield name, value
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from parts(inner, f"{name}.{field.name}".lstrip("."))


@pytest.fixture(params=ALL)
def preset(request):
    return ALL[request.param]


def test_the_four_presets():
    assert list(PRESETS) == ["paper", "reference", "cpu", "smoke"]
    assert list(PRESET_NOTES) == [*PRESETS, "cpu-agent"]  # the last one is for videos
    assert default_preset() == "cpu"  # the tests run on a CPU
    assert all(note.endswith(".") for note in PRESET_NOTES.values())


def test_presets_are_hashable_values(preset):
    copy = dataclasses.replace(preset)
    assert copy == preset and hash(copy) == hash(preset)
    shared = [(name, "bigfish") for name in ("bossfight", "chaser", "dodgeball")]
    assert len({hash(p) for p in ALL.values()}) == len(ALL) - len(shared)
    assert all(OWN_PRESETS[a] == OWN_PRESETS[b] for a, b in shared)
    for name, part in parts(preset):
        assert dataclasses.is_dataclass(part), name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, 0)


def test_presets_are_json(preset):
    values = checkpoint.as_json(preset)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    for (name, a), (_, b) in zip(parts(preset), parts(dataclasses.replace(preset)), strict=True):
        assert checkpoint.as_json(a) == checkpoint.as_json(b), name
    assert checkpoint.differing_field(values, checkpoint.as_json(dataclasses.replace(preset, seed=5))) is not None


def test_presets_are_read_back_exactly(preset):
    written = json.loads(json.dumps(checkpoint.as_json(preset)))
    back = checkpoint.from_json(RunConfig, written)
    assert back == preset and hash(back) == hash(preset)
    assert type(back.dynamics.idm) is type(preset.dynamics.idm) and type(back.dynamics.fdm) is type(preset.dynamics.fdm)


def test_settings_that_fit_no_class_are_refused():
    with pytest.raises(checkpoint.CheckpointError, match="are not those of a ImpalaConfig or GridConfig or MLPConfig"):
        checkpoint.from_json(ScratchConfig, {"trunk": {"width": 3}})


def test_a_field_that_came_later_has_its_default():
    written = checkpoint.as_json(PRESETS["cpu"])
    del written["ring_frames"], written["dynamics"]["augment"]
    assert checkpoint.from_json(RunConfig, written) == PRESETS["cpu"]


def test_each_kind_of_observation_has_presets_of_its_own():
    assert presets_for((64, 64, 3)) is PRESETS
    assert presets_for((10, 10, 4)) is presets_for((32, 16, 1)) is GRID_PRESETS
    assert presets_for((4,)) is VECTOR_PRESETS
    with pytest.raises(TypeError, match=r"presets_for\(envs.obs_shape\('coinrun'\), 'coinrun'\)"):
        presets_for("coinrun")
    for table in (GRID_PRESETS, VECTOR_PRESETS):
        assert list(table) == ["cpu", "smoke"] and default_preset(table) == "cpu"
        # Nothing of them convolves in XLA's way, so their steps fuse on every backend.
        for preset in table.values():
            networks = (preset.dynamics.idm, preset.dynamics.fdm, preset.cloning.trunk, preset.scratch.trunk)
            assert not any(network.convolves for network in networks)
        assert table["cpu"].train_expert and not table["smoke"].train_expert
        assert table["cpu"].expert.ppo.total_frames > table["cpu"].scratch.ppo.total_frames
    assert not any(preset.train_expert for preset in PRESETS.values())


def test_an_environment_may_have_presets_of_its_own():
    found = presets_for((3,), "pendulum")
    assert found["smoke"] is VECTOR_PRESETS["smoke"] and found["cpu"] is OWN_PRESETS["pendulum"]["cpu"]
    assert not found["cpu"].dynamics.quantizer.enabled and found["cpu"].train_expert
    assert presets_for((4,), "cartpole") is VECTOR_PRESETS


def test_presets_differ_where_a_name_says_so():
    paper, reference, cpu, smoke = PRESETS.values()
    assert paper == RunConfig()
    assert reference.dynamics.quantizer.start == "reference" and not reference.analysis.mask_boundaries
    assert paper.dynamics.quantizer.start == "corrected" and paper.analysis.mask_boundaries
    assert paper.analysis.mask_probes and paper.online.decoder.mask_boundaries
    assert not reference.analysis.mask_probes and not reference.online.decoder.mask_boundaries
    # The reference differs in its defects and in nothing else.
    mended = dataclasses.replace(
        reference,
        dynamics=dataclasses.replace(reference.dynamics, quantizer=paper.dynamics.quantizer),
        analysis=paper.analysis,
        online=paper.online,
    )
    assert mended == paper
    for bigger, smaller in ((paper, cpu), (cpu, smoke)):
        assert bigger.record.frames > smaller.record.frames
        assert bigger.dynamics.steps > smaller.dynamics.steps
        assert bigger.online.ppo.total_frames > smaller.online.ppo.total_frames


# Numbers that must fit together


def test_steps_and_schedules(preset):
    for stage in (preset.dynamics, preset.cloning):
        assert 0 < stage.warmup_steps < stage.steps and stage.batch_size > 0 and 0 < stage.learning_rate < 0.1
    assert preset.log_every <= min(preset.dynamics.steps, preset.cloning.steps)
    # Evaluations happen at rows of metrics, and before the end.
    assert preset.analysis.eval_every % preset.log_every == 0
    assert preset.analysis.eval_every < min(preset.dynamics.steps, preset.cloning.steps)
    assert preset.checkpoint_every > 0 and preset.max_in_flight >= 1


@pytest.mark.parametrize("name", [*PRESETS, "starpilot"])
def test_images_fit_the_networks(name):
    preset = presets_for((FRAME, FRAME, 3), name)["cpu"] if name in OWN_PRESETS else PRESETS[name]
    square = preset.dynamics.focus or FRAME  # what stage 1 sees
    policies = [preset.cloning.trunk, preset.scratch.trunk, preset.expert.trunk]
    for trunk, seen in [(preset.dynamics.idm, square), *((trunk, FRAME) for trunk in policies)]:
        side = seen / trunk.stem
        for stride in trunk.strides:
            side /= stride
        assert side == int(side) >= 4
    fdm = preset.dynamics.fdm
    assert 2 ** (len(fdm.channels) + 1) == square // fdm.stem


def test_every_policy_is_compared_at_the_same_size_and_frames(preset):
    assert preset.scratch.ppo.total_frames == preset.online.ppo.total_frames
    assert preset.scratch.trunk == preset.cloning.trunk
    for field in ("num_envs", "num_steps", "num_epochs", "num_minibatches", "gamma", "gae_lambda", "clip"):
        assert getattr(preset.scratch.ppo, field) == getattr(preset.online.ppo, field), field


def test_ppo_budgets(preset):
    for ppo in (preset.online.ppo, preset.scratch.ppo, preset.expert.ppo):
        update = ppo.num_envs * ppo.num_steps
        assert ppo.num_updates == ppo.total_frames // update >= 4
        assert update % (ppo.num_minibatches * ppo.grad_chunks) == 0
        for group, schedule in ppo.learning_rates:
            fractions = [fraction for fraction, _ in schedule]
            assert (fractions[0], fractions[-1]) == (0.0, 1.0) and fractions == sorted(fractions), group
            assert all(0 <= rate < 0.1 for _, rate in schedule)
    assert {group for group, _ in preset.online.ppo.learning_rates} == {"policy_head", "value_head", "fc", "convs"}


def test_the_expert_for_accelerators():
    """IMPALA's own width and as many transitions in an update as 64 environments of 256 steps give."""
    expert = PRESETS["paper"].expert
    assert expert == PRESETS["reference"].expert and expert.trunk.channels == (16, 32, 32)
    assert (expert.dtype, expert.ppo.num_envs) == ("bfloat16", 256)
    assert expert.ppo.num_envs * expert.ppo.num_steps == 64 * 256
    assert (expert.ppo.num_epochs, expert.ppo.num_minibatches, expert.ppo.gamma) == (3, 8, 0.999)


def test_the_online_decoder_is_fitted(preset):
    decoder, ppo = preset.online.decoder, preset.online.ppo
    assert 0 <= decoder.start <= decoder.dense_until <= decoder.stop <= 1
    capacity = min(decoder.capacity, ppo.total_frames)
    assert capacity >= (ppo.num_steps - 2) * ppo.num_envs
    assert decoder.batch_size <= capacity
    fits = [k for k in range(1, ppo.num_updates + 1) if refits(preset.online, k)]
    assert len(fits) >= 2 and all(collects(preset.online, k) for k in fits)
    # The policy head learns only once there is a decoder beside it.
    starts = dict(ppo.learning_rates)["policy_head"][1][0]
    assert fits[0] * ppo.num_envs * ppo.num_steps / ppo.total_frames <= max(starts, 0.3)


def test_episodes_and_labels(preset):
    offline = preset.offline
    assert offline.episodes % offline.num_envs == 0
    assert preset.eval_episodes % min(64, preset.eval_episodes) == 0
    assert list(offline.labels) == sorted(set(offline.labels)) and offline.labels[0] >= 1
    assert set(offline.compare_at) <= set(offline.labels)
    # A tenth of the levels is held out; windows at episode ends are lost too.
    assert offline.labels[-1] <= preset.record.frames // 2
    assert preset.analysis.probe_train <= preset.record.frames // 2
    assert preset.analysis.probe_test <= preset.analysis.probe_train
    assert preset.record.frames % (32 * preset.record.num_envs) == 0  # whole dispatches of the recorder
    assert preset.dynamics.batch_size <= preset.record.frames // 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataclasses.replace(PRESETS["smoke"].offline, episodes=17), r"episodes \(17\) must be a multiple"),
        (lambda: PPOConfig(num_envs=3, num_steps=5), "must divide into"),
        (lambda: ImpalaConfig(channels=(1, 2), strides=(2,)), "must have the same length"),
        (lambda: RunConfig(eval_episodes=100), r"eval_episodes \(100\) must be a multiple of 64"),
        (lambda: RunConfig(eval_episodes=0), "eval_episodes must be at least 1"),
        (lambda: RunConfig(log_every=0), "log_every must be at least 1, not 0"),
        (lambda: RunConfig(max_in_flight=0), "max_in_flight must be at least 1"),
        (lambda: RunConfig(analysis=AnalysisConfig(eval_every=0)), r"analysis\.eval_every must be at least 1"),
        (lambda: dataclasses.replace(PRESETS["smoke"].dynamics, context=-1), r"dynamics\.context must not be negative"),
        (
            lambda: RunConfig(cloning=dataclasses.replace(PRESETS["smoke"].cloning, steps=0)),
            r"cloning\.steps must be at least 1",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("episodes", [1, 16, 64, 128])
def test_episodes_that_fit(episodes):
    assert RunConfig(eval_episodes=episodes).eval_episodes == episodes


# Documentation


def documented(cls):
    """The names in the Attributes sections of the docstrings of a class and of those whose fields it inherits."""
    return {name for each in cls.__mro__ if each.__doc__ for name in attributes(each)}


def attributes(cls):
    _, _, section = cls.__doc__.partition("Attributes:\n")
    indents = [len(line) - len(line.lstrip()) for line in section.splitlines() if line.strip()]
    names = re.findall(rf"^ {{{indents[0]}}}(\w[\w, ]*):", section, re.MULTILINE) if indents else []
    return {name.strip() for group in names for name in group.split(",")}


CLASSES = {type(part) for preset in ALL.values() for _, part in parts(preset)} | {
    *(cls for cls, _ in cli.VERBS.values()),
    *(MLPConfig, DecoderConfig, OnlineConfig, DecodedPolicy, ActorCriticAgent, HybridAgent, Saver),
}


@pytest.mark.parametrize("cls", sorted(CLASSES, key=lambda cls: cls.__qualname__), ids=lambda cls: cls.__qualname__)
def test_every_field_is_documented(cls):
    assert documented(cls) == {field.name for field in dataclasses.fields(cls)}


def test_the_documentation_check_can_fail():
    @dataclasses.dataclass
    class Undocumented:
        """Something.

        Attributes:
          a: this,
            that: and more.
          b, c: two.
        """

        a: int
        d: int

    assert documented(Undocumented) == {"a", "b", "c"}
    assert {"folder", "env", "config"} <= documented(Run)


# A preset is a value, not a branch


def preset_branches(tree):
    """Comparisons of something called preset (or of a preset's name) in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            words = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            words |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
            texts = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            if any("preset" in word.lower() for word in words) and not isinstance(node.ops[0], ast.NotIn):
                yield node
            if texts & {"smoke", "paper"}:
                yield node


def test_no_module_asks_which_preset_it_is():
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.parent.name != "presets"
        for node in preset_branches(ast.parse(path.read_text()))
    ]
    assert found == []


def test_the_check_for_branches_can_fail():
    for code in ('if preset == "cpu": pass', 'x = 1 if args.preset in ("a", "b") else 2', 'if name == "smoke": pass'):
        assert list(preset_branches(ast.parse(code)))
    assert not list(preset_branches(ast.parse("if preset not in PRESETS: raise ValueError(preset)")))


def test_paper_computes_in_bfloat16_on_an_accelerator_alone():
    def types(config):
        return {part.dtype for part in (config.dynamics, config.cloning, config.online, config.scratch)}

    for backend in ("gpu", "tpu"):
        presets = presets_for((64, 64, 3), backend=backend)
        assert types(presets["paper"]) == {"bfloat16"} and with_dtype(presets["paper"], "float32").dynamics == (
            PRESETS["paper"].dynamics
        )
        assert types(presets["reference"]) == types(presets["cpu"]) == {"float32"}
        assert presets_for((4,), backend=backend) is VECTOR_PRESETS
    assert types(presets_for((64, 64, 3), backend="cpu")["paper"]) == {"float32"}
