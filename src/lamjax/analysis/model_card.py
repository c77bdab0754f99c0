"""Writes the card of a shared model or policy: what it is, its results with their baselines, and its training data."""

from collections.abc import Mapping
from typing import Any

from lamjax.analysis import diagnosis
from lamjax.analysis.report_figures import PROBES
from lamjax.analysis.report_text import short_count, text, with_error

_USE = """```python
import lamjax

lam = lamjax.load("{name}")  # this folder
latents = lam.infer(frames)  # {frames}
following = lam.predict(frames, latents)  # the frame after each
```

`lamjax label {name} CLIPS -o latents.parquet` labels videos. `safetensors` reads the weights without lamjax."""

_USE_POLICY = """```python
import jax
import lamjax

policy = lamjax.load("{name}")  # this folder
outputs = policy(frames)  # a batch of observations
actions = policy.space.sample(jax.random.key(0), outputs)
```

`lamjax eval --env {env} --checkpoint {name}` plays it. `safetensors` reads the weights without lamjax."""


def model_card(summary: Mapping[str, Any], name: str, facts: Mapping[str, str]) -> str:
    """Writes a model card in Markdown, with the front matter that model hubs read.

    Args:
      summary: the results, as in ``summary.json``; stages may be absent.
      name: the model's name.
      facts: properties of the model, by heading.
    """
    parts = _beginning(
        summary,
        name,
        f"A latent action model of {summary.get('env')}",
        "latent-action-model",
        "From video without action labels, it infers what was done between two frames, and predicts the next frame "
        "from that.",
    )
    if banner := summary.get("banner"):
        parts.append(f"**{banner}**")
    shape = facts["observation"].replace(" x ", ", ")
    frames = f"uint8 [B, {facts['window'].split()[0]}, {shape}], or a clip [T, {shape}]"
    parts += ["## Use", _USE.format(name=name, frames=frames), "## The model", _table(("", ""), facts.items())]
    if rows := _results(summary):
        parts += [
            "## How good it is",
            "Every figure is measured on held-out episodes, next to its baseline from the same run.",
            _table(("", "model", "baselines"), rows),
        ]
    if failed := [stage["verdict"] for stage in _stages(summary).values() if stage.get("ok") is False]:
        parts.append("\n".join(f"- {verdict}" for verdict in failed))
    return "\n\n".join([*parts, "## Data", _data(summary)]) + "\n"


def policy_card(summary: Mapping[str, Any], info: Mapping[str, Any], name: str, facts: Mapping[str, str]) -> str:
    """Writes a policy's card in Markdown; takes the arguments of `model_card`, and `info`, the policy's own results."""
    env = summary.get("env") or info.get("env")
    parts = _beginning(
        {**summary, "versions": summary.get("versions") or info.get("versions")},
        name,
        f"A policy for {env}",
        "reinforcement-learning",
        "It maps each observation to a distribution over actions.",
    )
    parts += ["## Use", _USE_POLICY.format(name=name, env=env), "## The policy", _table(("", ""), facts.items())]
    if rows := _policy_results(summary, info):
        parts += ["## How good it is", _table(("", "policy", "baselines"), rows)]
    if command := info.get("command"):
        parts += ["## Training", f"`{command}`"]
    return "\n\n".join([*parts, *(["## Data", _data(summary)] if summary else [])]) + "\n"


def _beginning(summary: Mapping[str, Any], name: str, title: str, tag: str, sentence: str) -> list[str]:
    """The front matter, the heading, and a sentence about what was trained and how."""
    versions = summary.get("versions") or {}
    trained = f"{title}, trained by lamjax {versions.get('lamjax', '')}".rstrip()
    settings = [f"preset `{summary['preset']}`"] if "preset" in summary else []
    settings += [f"seed {summary['seed']}"] if "seed" in summary else []
    settings += [f"commit `{summary['git']}`"] if summary.get("git") else []
    trained += f" ({', '.join(settings)})" if settings else ""
    front = f"---\nlibrary_name: lamjax\ntags:\n- {tag}\n- jax\n---"
    return [front, f"# {name}", f"{trained}. {sentence}"]


def _table(headings: tuple[str, ...], rows: Any) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _stages(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: results or {} for name, results in (summary.get("stages") or {}).items()}


def _results(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of a figure's name, the model's value, and the values of its baselines."""
    stages = _stages(summary)
    dynamics, cloning = stages.get("dynamics", {}), stages.get("cloning", {})
    rows = []
    if "fdm_mse" in dynamics:
        error, copy = (text(dynamics[key], key) for key in ("fdm_mse", "copy_last_mse"))
        rows.append(("error of the predicted frame", error, f"copy the last frame {copy}"))
    names = diagnosis.score_names(dynamics)
    if names.probe in dynamics:
        labels = ("untrained model", "o_t alone", PROBES[names.probe].constant)
        values = (text(dynamics.get(key), names.probe) for key in names.baselines)
        baselines = ", ".join(f"{label} {value}" for label, value in zip(labels, values, strict=True))
        rows.append((f"a probe reads the {names.score}", text(dynamics[names.probe], names.probe), baselines))
    if information := dynamics.get("action_information"):
        share = with_error(information["share"], information["share_stderr"])
        baseline = f"untrained model {text(information['untrained_share'], 'mean')}"
        rows.append(("share of what the frames reveal about the action", share, baseline))
    if fresh := summary.get("fresh_levels"):
        share = with_error(fresh["share"], fresh["share_stderr"])
        baseline = f"untrained model {text(fresh['untrained_share'], 'mean')}"
        rows.append(("the same on levels that the run did not record", share, baseline))
    if "mse" in cloning:
        row = (text(cloning["mse"], "mse"), f"their mean {text(cloning['null_mse'], 'mse')}")
        rows.append(("error of the cloned latents", *row))
    if decoder := summary.get("decoder"):
        score = "mse" if "mse" in decoder else "accuracy"
        row = (text(decoder[score], score), f"a constant guess {text(decoder['constant'], score)}")
        aliases = ", aliases not merged" if score == "accuracy" else ""
        rows.append((f"{score} of actions decoded from {decoder['labels']:,} labels{aliases}", *row))
    return rows


def _policy_results(summary: Mapping[str, Any], info: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows as in `_results`: the policy's return, or how well its decoder predicts actions."""
    rows, stages = [], _stages(summary)
    if (mean := info.get("return_mean")) is not None:
        values = {
            label: with_error(baseline.get("mean"), baseline.get("stderr"))
            for name, label in (("random_return", "random policy"), ("expert_return", "recorded policy"))
            if (baseline := (summary.get("nulls") or {}).get(name))
        }
        baselines = ", ".join(f"{label} {value}" for label, value in values.items()) or "none"
        label = f"return over {info['episodes']:,} episodes" if "episodes" in info else "return"
        rows.append((label, with_error(mean, info.get("return_stderr")), baselines))
    for score in ("accuracy", "mse"):
        if score in info:
            constant = stages.get("decode_actions", {}).get("constant")
            constant = summary.get("decoder", {}).get("constant", constant)
            baselines = "none" if constant is None else f"a constant guess {text(constant, score)}"
            rows.append((f"{score} of held-out actions", text(info[score], score), baselines))
    return rows


def _data(summary: Mapping[str, Any]) -> str:
    """Sentences about the training data."""
    source: Any = summary.get("source") or {}
    record = _stages(summary).get("record", {})
    frames = f"{short_count(record['frames'])} frames" if "frames" in record else "Frames"
    episodes = f" of {record['episodes']:,} episodes" if "episodes" in record else ""
    kinds = {
        "store": "existing trajectories",
        "random": "a random policy",
        "expert": "an expert",
        "planner": "a planner",
    }
    origin = kinds.get(source.get("policy"), source.get("policy") or "a source that the run does not state")
    origin = "videos" if source.get("format") == "video" else origin
    share = summary.get("random_share") or source.get("random_share")
    origin += f" with {100 * share:g} % random actions" if share else ""
    return f"{frames}{episodes} of {summary.get('env')}, from {origin}. The test split was held out."
