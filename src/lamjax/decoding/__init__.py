"""Stage 3: from latent actions to real ones, offline from a few labels, online by PPO, or by behaviour cloning."""

from lamjax.decoding import behaviour_cloning, offline, online

__all__ = ["behaviour_cloning", "offline", "online"]
