"""The card of a shared model: what it is, how good it is beside its baselines, and what it learned from."""

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


def model_card(summary: Mapping[str, Any], name: str, facts: Mapping[str, str]) -> str:
    """Writes a model card in Markdown, with the front matter that model hubs read.

    Args:
      summary: the results, as in ``summary.json``; stages may be absent.
      name: what the model is called.
      facts: what the model is, by headings.
    """
    versions, env = summary.get("versions") or {}, summary.get("env")
    trained = f"A latent action model of {env}, trained by lamjax {versions.get('lamjax', '')}".rstrip()
    settings = [f"preset `{summary['preset']}`"] if "preset" in summary else []
    settings += [f"seed {summary['seed']}"] if "seed" in summary else []
    settings += [f"commit `{summary['git']}`"] if summary.get("git") else []
    trained += f" ({', '.join(settings)})" if settings else ""
    parts = [
        "---\nlibrary_name: lamjax\ntags:\n- latent-action-model\n- jax\n---",
        f"# {name}",
        f"{trained}. It infers from video, without action labels, what was done between two frames, and predicts the "
        "next frame from it.",
    ]
    if banner := summary.get("banner"):
        parts.append(f"**{banner}**")
    shape = facts["observation"].replace(" x ", ", ")
    frames = f"uint8 [B, {facts['window'].split()[0]}, {shape}], or a clip [T, {shape}]"
    parts += ["## Use", _USE.format(name=name, frames=frames), "## The model", _table(("", ""), facts.items())]
    if rows := _results(summary):
        parts += [
            "## How good it is",
            "Every figure is of held-out episodes and stands beside its baseline from the same run.",
            _table(("", "model", "baselines"), rows),
        ]
    if failed := [stage["verdict"] for stage in _stages(summary).values() if stage.get("ok") is False]:
        parts.append("\n".join(f"- {verdict}" for verdict in failed))
    return "\n\n".join([*parts, "## Data", _data(summary)]) + "\n"


def _table(headings: tuple[str, ...], rows: Any) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _stages(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: results or {} for name, results in (summary.get("stages") or {}).items()}


def _results(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of a figure, the model's, and those of its baselines."""
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
        rows.append(("share of what frames tell of the action", share, baseline))
    if "mse" in cloning:
        row = (text(cloning["mse"], "mse"), f"their mean {text(cloning['null_mse'], 'mse')}")
        rows.append(("error of the cloned latents", *row))
    return rows


def _data(summary: Mapping[str, Any]) -> str:
    """What the model learned from, in sentences."""
    source: Any = summary.get("source") or {}
    record = _stages(summary).get("record", {})
    frames = f"{short_count(record['frames'])} frames" if "frames" in record else "Frames"
    episodes = f" of {record['episodes']:,} episodes" if "episodes" in record else ""
    kinds = {"store": "existing trajectories", "random": "a random policy", "expert": "an expert"}
    origin = kinds.get(source.get("policy"), source.get("policy") or "a source that the run does not state")
    origin = "videos" if source.get("format") == "video" else origin
    return f"{frames}{episodes} of {summary.get('env')}, from {origin}. The test split was held out."
