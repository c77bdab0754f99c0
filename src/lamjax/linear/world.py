"""The linear world: observations, actions, controllable change, and noise (arXiv 2506.15691, section 3).

    o ~ (0, S_o),   a = chi Pi o + (1 - chi) pi,   q = X a,   o' = o + q + eps
    eps = K o + (1 - c) (s_exo Y b + s_iid n)

Everything is linear in independent sources (o, pi, b, n) of unit variance. So one function, `transition`, defines the
world: given draws it samples, and given the identity it returns the linear maps, whose products are the exact moments.

Dimension keys: O observation, A action, B other agents' action, N samples, V = 3 O + A all variables.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np

VARIABLES = ("o", "q", "eps", "a")


def check(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_choice(name: str, value: str, *choices: str) -> None:
    """Raises ValueError, which names the argument, unless the value is one of the choices."""
    check(value in choices, f"{name} must be one of {', '.join(choices)}, not {value!r}.")


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """The settings of a world; the defaults are the paper's, without noise.

    Attributes:
      d_o: O, size of an observation.
      d_a: A, size of an action.
      d_b: B, size of the other agents' action.
      s_iid: standard deviation of the iid noise of each coordinate.
      s_exo: scale of the other agents' effect.
      noise: the iid noise: "gaussian", or "uniform" on [0, s_iid) as in the authors' code for Figure 4 middle, with
        mean s_iid / 2 and variance s_iid^2 / 12.
      q_norm: "direction" leaves the columns of X orthonormal (the authors' code: the variance of q sums to A);
        "coordinate" scales X and Y by sqrt(O / A), so that it is 1 a coordinate (the paper's text).
      orthogonal: the columns of Y are orthogonal to those of X; otherwise the two are independent draws.
      chi: weight of the deterministic part of the policy, in [0, 1].
      rho: correlation of the other agents' action b_j with the random part of the action a_j.
      clean: c, the fraction of the noise that data cleaning removes.
      action_scales: scale of each action's effect, length A; () means 1 for all.
    """

    d_o: int = 128
    d_a: int = 8
    d_b: int = 8
    s_iid: float = 0.0
    s_exo: float = 0.0
    noise: Literal["gaussian", "uniform"] = "gaussian"
    q_norm: Literal["direction", "coordinate"] = "direction"
    orthogonal: bool = False
    chi: float = 0.0
    rho: float = 0.0
    clean: float = 0.0
    action_scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("d_o", "d_a"):
            check(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}.")
        check(self.d_b >= 0, f"d_b must be at least 0, not {self.d_b}.")
        for name in ("d_a", "d_b"):
            size = getattr(self, name)
            check(size <= self.d_o, f"{name} must be at most d_o ({self.d_o}), not {size}.")
        fits = self.d_a + self.d_b <= self.d_o
        check(fits or not self.orthogonal, f"orthogonal needs d_a + d_b <= d_o ({self.d_o}).")
        for name in ("s_iid", "s_exo"):
            value = getattr(self, name)
            check(0 <= value < np.inf, f"{name} must be finite and not negative, not {value}.")
        for name, low in (("chi", 0), ("rho", -1), ("clean", 0)):
            value = getattr(self, name)
            check(low <= value <= 1, f"{name} must lie in [{low}, 1], not {value}.")
        check_choice("noise", self.noise, "gaussian", "uniform")
        check_choice("q_norm", self.q_norm, "direction", "coordinate")
        if self.action_scales:
            right = len(self.action_scales) == self.d_a and all(0 < s < np.inf for s in self.action_scales)
            check(right, f"action_scales must be {self.d_a} positive numbers (d_a), not {self.action_scales}.")

    @property
    def noisy(self) -> bool:
        """Whether there is any noise."""
        return self.clean < 1 and ((self.s_exo > 0 and self.d_b > 0) or self.s_iid > 0)


class Factors(NamedTuple):
    """A world's matrices. float64 numpy arrays, or float32 JAX arrays with any leading axes under vmap.

    Attributes:
      X: ``[O, A]``, effect of the actions.
      Y: ``[O, B]``, effect of the other agents, with s_exo and (1 - c) in it.
      Pi: ``[A, O]``, orthonormal rows: the deterministic part of the policy.
      chi: ``[]``, its weight.
      rho: ``[]``, correlation of b_j with the random part of a_j.
      iid: ``[]``, standard deviation of the iid noise.
      mean: ``[]``, its mean.
      obs: ``[O, O]``, symmetric root of S_o, or None where S_o = I.
      leak: ``[O, O]``, K of eps = K o + ..., or None.
    """

    X: Any
    Y: Any
    Pi: Any
    chi: Any
    rho: Any
    iid: Any
    mean: Any
    obs: Any = None
    leak: Any = None


class Sources(NamedTuple):
    """Independent draws of zero mean and unit variance, except `one`.

    Attributes:
      one: ``[N, 1]``, ones; what it is multiplied with is a mean.
      o: ``[N, O]``.
      pi: ``[N, A]``.
      b: ``[N, B]``.
      iid: ``[N, O]``.
    """

    one: Any
    o: Any
    pi: Any
    b: Any
    iid: Any


class Transition(NamedTuple):
    """Samples of the world's variables; the next observation is ``o + q + eps``.

    Attributes:
      o: ``[N, O]``, observations.
      q: ``[N, O]``, controllable changes.
      eps: ``[N, O]``, exogenous changes.
      a: ``[N, A]``, actions.
    """

    o: Any
    q: Any
    eps: Any
    a: Any


def transition(world: Factors, sources: Sources) -> Transition:
    """The world's variables from its sources (section 3 of the paper); runs on numpy and on JAX arrays."""
    rank = min(world.X.shape[-1], world.Y.shape[-1])  # actions and others' actions are correlated pair by pair
    o = sources.o if world.obs is None else sources.o @ world.obs
    a = world.chi * (o @ world.Pi.T) + (1 - world.chi) * sources.pi
    shared = world.rho * sources.pi[:, :rank] @ world.Y.T[:rank]
    paired = (1 - world.rho**2) ** 0.5 * sources.b[:, :rank] @ world.Y.T[:rank]
    private = paired + sources.b[:, rank:] @ world.Y.T[rank:]
    eps = shared + private + world.iid * sources.iid + world.mean * sources.one
    if world.leak is not None:
        eps = eps + o @ world.leak.T
    return Transition(o, a @ world.X.T, eps, a)


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Means and uncentred second moments of the variables (o, q, eps, a), exact or of a sample.

    Attributes:
      second: float64 ``[V, V]``, E[v v^T].
      mean: float64 ``[V]``, E[v].
      d_o: O.
      d_a: A.
    """

    second: np.ndarray
    mean: np.ndarray
    d_o: int
    d_a: int

    def __post_init__(self) -> None:
        size = 3 * self.d_o + self.d_a
        check(self.second.shape == (size, size), f"second must be {size} x {size}, not {self.second.shape}.")
        check(self.mean.shape == (size,), f"mean must have shape ({size},), not {self.mean.shape}.")
        check(bool(np.isfinite(self.second).all()), "second holds NaN or infinity.")
        check(bool(np.isfinite(self.mean).all()), "mean holds NaN or infinity.")
        check(np.allclose(self.second, self.second.T, atol=1e-10), "second must be symmetric.")
        check(bool((np.diag(self.second) >= 0).all()), "second has a negative variance on its diagonal.")

    @classmethod
    def of_samples(cls, samples: Transition) -> "Moments":
        """The moments of a finite data set ``[N, ...]``: the plug-in estimate."""
        v = np.concatenate([np.asarray(x, np.float64) for x in samples], axis=1)
        return cls(v.T @ v / len(v), v.mean(0), samples.o.shape[1], samples.a.shape[1])

    def select(self, **coefficients: np.ndarray | float) -> np.ndarray:
        """A linear map of the variables, ``[D, V]``.

        Args:
          **coefficients: for "o", "q", "eps", "a" and "delta" (for q + eps) a matrix ``[D, size]``, or a number for
            that multiple of the identity. "delta" adds to "q" and "eps".
        """
        delta = coefficients.pop("delta", None)
        if delta is not None:
            coefficients = {"q": delta, "eps": delta} | coefficients
        sizes = dict(zip(VARIABLES, (self.d_o, self.d_o, self.d_o, self.d_a), strict=True))
        blocks = {k: v * np.eye(sizes[k]) if np.ndim(v) == 0 else np.asarray(v) for k, v in coefficients.items()}
        rows = len(next(iter(blocks.values())))
        return np.concatenate([blocks.get(k, np.zeros((rows, size))) for k, size in sizes.items()], axis=1)

    def product(self, left: np.ndarray, right: np.ndarray, *, centred: bool = False) -> np.ndarray:
        """``E[(left v) (right v)^T]``, or the covariance: ``[L, V]`` and ``[R, V]`` to ``[L, R]``."""
        second = left @ self.second @ right.T
        return second - np.outer(left @ self.mean, right @ self.mean) if centred else second


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """A world with its matrices drawn.

    Attributes:
      config: the settings.
      factors: its matrices, float64.
    """

    config: WorldConfig
    factors: Factors

    def variant(self, *, noise: bool = True, on_policy: bool = True) -> "World":
        """The same world without noise, or under random actions a ~ N(0, I)."""
        factors = self.factors
        if not noise:
            factors = factors._replace(Y=0 * factors.Y, iid=0.0, mean=0.0, leak=None)
        return dataclasses.replace(self, factors=factors if on_policy else factors._replace(chi=0.0))

    def moments(self) -> Moments:
        """The exact moments, float64."""
        c = self.config
        sizes = (1, c.d_o, c.d_a, c.d_b, c.d_o)
        sources = Sources(*np.split(np.eye(sum(sizes)), np.cumsum(sizes)[:-1], axis=1))
        maps = np.concatenate(transition(self.factors, sources), axis=1)
        return Moments(maps.T @ maps, maps[0], c.d_o, c.d_a)

    def sample(self, n: int, rng: np.random.Generator) -> Transition:
        """Draws n independent transitions, float64."""
        check(n >= 1, f"n must be at least 1, not {n}.")
        c = self.config
        o, pi, b, iid = (rng.standard_normal((n, d)) for d in (c.d_o, c.d_a, c.d_b, c.d_o))
        if c.noise == "uniform":
            iid = np.sqrt(12) * (rng.random((n, c.d_o)) - 0.5)
        return transition(self.factors, Sources(np.ones((n, 1)), o, pi, b, iid))


def make_world(
    config: WorldConfig, seed: int = 0, *, obs_cov: np.ndarray | None = None, noise_from_obs: np.ndarray | None = None
) -> World:
    """Draws the world's matrices.

    X and Y come from QR decompositions of Gaussian matrices, one each, or one for both if `config.orthogonal`. They
    depend on the seed and on the sizes alone, so worlds that differ in scales differ in nothing else.

    Args:
      config: the settings.
      seed: draws the matrices.
      obs_cov: ``[O, O]``, S_o; the identity by default.
      noise_from_obs: ``[O, O]``, K of ``eps = K o + ...``; 0 by default.
    """
    c = config
    rng = np.random.default_rng(seed)
    gauss = [rng.standard_normal((c.d_o, d)) for d in (c.d_a, c.d_b, c.d_a)]
    Pi = np.linalg.qr(gauss[2])[0].T
    if c.orthogonal:
        X, Y = np.split(np.linalg.qr(np.concatenate(gauss[:2], axis=1))[0], [c.d_a], axis=1)
    else:
        X, Y = (np.linalg.qr(g)[0] for g in gauss[:2])
    unit = np.sqrt(c.d_o / c.d_a) if c.q_norm == "coordinate" else 1.0
    remaining = 1 - c.clean
    deviation, mean = (c.s_iid / np.sqrt(12), c.s_iid / 2) if c.noise == "uniform" else (c.s_iid, 0.0)
    X = unit * X * (np.asarray(c.action_scales) if c.action_scales else 1.0)
    factors = Factors(X, remaining * c.s_exo * unit * Y, Pi, c.chi, c.rho, remaining * deviation, remaining * mean)
    for name, matrix in (("obs_cov", obs_cov), ("noise_from_obs", noise_from_obs)):
        if matrix is not None:
            square = matrix.shape == (c.d_o, c.d_o)
            check(square, f"{name} must be {c.d_o} x {c.d_o} (d_o), not {matrix.shape}.")
            check(bool(np.isfinite(matrix).all()), f"{name} holds NaN or infinity.")
    if obs_cov is not None:
        check(np.allclose(obs_cov, obs_cov.T), "obs_cov must be symmetric.")
        values, vectors = np.linalg.eigh(obs_cov)
        check(values[0] >= -1e-10 * abs(values[-1]), "obs_cov has a negative variance.")
        factors = factors._replace(obs=(vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)
    return World(config, factors._replace(leak=noise_from_obs))
