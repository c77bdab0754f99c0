"""LAPO's networks and training programs in PyTorch, written from the paper's description.

Benchmarks compare with them where PyTorch is installed, and tests make golden files and checkpoints with the
reference's names. `recompute` computes a golden file's numbers with the functions that are timed.
"""

import copy
import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """The residual block of a trunk's stage: two convolutions with the reference's names."""

    def __init__(self, channels):
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv1(F.relu(self.conv0(F.relu(x))))


class Stage(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, padding=1)
        self.res_block0 = Residual(outside)
        self.res_block1 = Residual(outside)

    def forward(self, x):
        x = F.max_pool2d(self.conv(x), 3, 2, 1)
        return self.res_block1(self.res_block0(x))


class Trunk(nn.Module):
    def __init__(self, inputs, scale):
        super().__init__()
        widths = [scale * c for c in (16, 32, 32)]
        self.conv_stack = nn.ModuleList(Stage(i, o) for i, o in zip([inputs, *widths], widths, strict=False))
        self.fc = nn.Linear(widths[-1] * 64, 256)

    def convs(self, x):
        for stage in self.conv_stack:
            x = stage(x)
        return F.relu(x.flatten(1))

    def features(self, x):
        return F.relu(self.fc(self.convs(x)))


class Quantizer(nn.Module):
    def __init__(self, n, h, d, m):
        super().__init__()
        self.sizes = (n, h, d, m)
        embedding = torch.empty(n, m, d).uniform_(-5 / m, 5 / m)
        self.register_buffer("embedding", embedding)
        self.register_buffer("ema_count", torch.zeros(n, m))
        self.register_buffer("ema_weight", embedding.clone())

    def forward(self, la):
        n, h, d, m = self.sizes
        b = len(la)
        z = la.view(b, n, d, h).permute(0, 1, 3, 2)  # [B, N, H, D]
        far = (z[:, :, :, None] - self.embedding[None, :, None]).square().sum(-1)
        indices = far.argmin(-1)  # [B, N, H]
        one_hot = F.one_hot(indices, m).float()
        q = torch.einsum("bnhm,nmd->bnhd", one_hot, self.embedding).detach()
        la_q = q.permute(0, 1, 3, 2).reshape(b, -1)
        if self.training:
            with torch.no_grad():
                hits, sums = one_hot.sum((0, 2)), torch.einsum("bnhm,bnhd->nmd", one_hot, z)
                count = 0.999 * self.ema_count + 0.001 * hits
                total = count.sum(-1, keepdim=True)
                self.ema_count = (count + 1e-5) / (total + m * 1e-5) * total
                self.ema_weight = 0.999 * self.ema_weight + 0.001 * sums
                self.embedding = self.ema_weight / self.ema_count[..., None]
        loss = 0.05 * (la - la_q).square().mean()
        p = one_hot.mean((0, 2))
        perplexity = torch.exp(-(p * torch.log(p + 1e-10)).sum(-1)).sum()
        return la + (la_q - la).detach(), la_q, indices[..., None], loss, perplexity


class Idm(Trunk):
    def __init__(self, scale, n, h, d, m):
        super().__init__(9, scale)
        self.policy_head = nn.Linear(256, n * h * d)
        self.vq = Quantizer(n, h, d, m)


class Policy(Trunk):
    def __init__(self, scale, latent):
        super().__init__(3, scale)
        self.policy_head = nn.Linear(256, latent)
        self.value_head = nn.Linear(256, 1)
        nn.init.orthogonal_(self.value_head.weight, 2**0.5)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, x):
        x = self.features(x)
        return self.policy_head(x), self.value_head(x)


class UnetResidual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        hidden = channels // 2
        self.res_block = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, channels, 3, padding=1)
        )

    def forward(self, x):
        return x + self.res_block(x)


class Down(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm = nn.BatchNorm2d(outside)
        self.res = UnetResidual(outside)

    def forward(self, x):
        return F.relu(F.max_pool2d(self.res(self.norm(self.conv(x))), 2))


class Up(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.conv = nn.ConvTranspose2d(inside, outside, 2, 2)
        self.norm = nn.BatchNorm2d(outside)
        self.res = UnetResidual(outside)

    def forward(self, x):
        return F.relu(self.res(self.norm(self.conv(x))))


class WorldModel(nn.Module):
    def __init__(self, base, latent):
        super().__init__()
        w = [base * 2**level for level in range(5)]
        downs = [Down(i, o) for i, o in zip([6 + latent, *w], w, strict=False)]
        self.down = nn.ModuleList([*downs, nn.Conv2d(w[4], 2 * w[4], 2)])
        inside = [2 * w[4] + latent, 2 * w[4], 2 * w[3], 2 * w[2], 2 * w[1], 2 * w[0]]
        self.up = nn.ModuleList(Up(i, o) for i, o in zip(inside, [w[4], w[3], w[2], w[1], w[0], w[0]], strict=True))
        self.final_conv = nn.Sequential(
            nn.Conv2d(base + 6, base, 3, padding=1), UnetResidual(base), nn.ReLU(), nn.Conv2d(base, 3, 1)
        )

    def forward(self, state, latent):
        image = latent[:, :, None, None]
        x = torch.cat([state, image.expand(-1, -1, 64, 64)], 1)
        skips = []
        for block in self.down[:-1]:
            x = block(x)
            skips.append(x)
        x = self.up[0](torch.cat([self.down[-1](x), image], 1))
        for block, skip in zip(self.up[1:], reversed(skips), strict=True):
            x = block(torch.cat([x, skip], 1))
        return torch.tanh(self.final_conv(torch.cat([x, state], 1))) / 2


class Actor(nn.Module):
    """Stage 3's agent: the policy with a head that PPO trains; its convolutions are frozen, yet differentiated."""

    def __init__(self, policy, actions):
        super().__init__()
        latent = policy.policy_head.out_features
        widths = [latent, 192, 128, 64, actions]
        layers = [part for i, o in itertools.pairwise(widths) for part in (nn.Linear(i, o), nn.ReLU())]
        self.trunk, self.decoder = policy, nn.Sequential(*layers[:-1])
        self.fc_sl = copy.deepcopy(policy.fc).requires_grad_(False)
        self.policy_head_sl = policy.policy_head.requires_grad_(False)
        self.policy_head_rl = nn.Linear(256, actions)
        nn.init.zeros_(self.policy_head_rl.weight)
        nn.init.zeros_(self.policy_head_rl.bias)

    def trained(self):
        heads = (self.policy_head_rl, self.trunk.value_head, self.trunk.fc)
        return [p for module in heads for p in module.parameters()]

    def forward(self, x):
        x = self.trunk.convs(x)
        decoded = self.decoder(self.policy_head_sl(F.relu(self.fc_sl(x))))
        x = F.relu(self.trunk.fc(x))
        return (self.policy_head_rl(x) + decoded) / 2, self.trunk.value_head(x)


def make(config, seed):
    """The three networks at the sizes of `config`: IDM, forward model, policy."""
    scale, base, n, h, d, m = config
    torch.manual_seed(seed)
    return Idm(scale, n, h, d, m), WorldModel(base, n * h * d), Policy(scale, n * h * d)


def images(obs, layout=torch.contiguous_format):
    """uint8 [B, H, W, C], or [B, T, H, W, C] with time joined to channels, as float [B, T * C, H, W]."""
    obs = obs if obs.ndim == 5 else obs[:, None]
    return (obs.permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 255 - 0.5).contiguous(memory_format=layout)


def dynamics_loss(idm, wm, obs, layout=torch.contiguous_format):
    """Stage 1's loss on windows, and its intermediate results by the names of a golden file."""
    frames = images(obs, layout)
    la = idm.policy_head(idm.features(frames))
    through, la_q, indices, vq_loss, perplexity = idm.vq(la)
    prediction = wm(frames[:, :6], through)
    wm_loss = F.mse_loss(prediction, frames[:, 6:])
    results = {"la": la, "la_q": la_q, "la_qinds": indices, "vq_loss": vq_loss, "vq_perp": perplexity}
    return wm_loss + vq_loss, results | {"wm_pred": prediction.permute(0, 2, 3, 1), "wm_loss": wm_loss}


def adamw(parameters, rate):
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)


def descend(loss, optimizer, clipped=(), limit=0.0):
    """A gradient step; returns the gradient's norm, where it is clipped."""
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(clipped, limit) if clipped else None
    optimizer.step()
    return norm


def cloning_loss(idm, policy, obs, layout=torch.contiguous_format):
    """Stage 2's loss on windows."""
    with torch.no_grad():
        target = idm.policy_head(idm.features(images(obs, layout)))
    return F.mse_loss(policy(images(obs[:, 1], layout))[0], target)


def ppo_loss(agent, batch, layout=torch.contiguous_format):
    """PPO's loss of a minibatch: obs, action, log_prob, value, advantage, target."""
    logits, value = agent(images(batch["obs"], layout))
    log_p = logits.log_softmax(-1)
    ratio = (log_p.gather(-1, batch["action"][:, None])[:, 0] - batch["log_prob"]).exp()
    advantage = batch["advantage"]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
    value, old = value[:, 0], batch["value"]
    clipped = old + (value - old).clamp(-0.2, 0.2)
    error = torch.max((value - batch["target"]).square(), (clipped - batch["target"]).square()).mean()
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    return policy + 0.5 * 0.5 * error - 0.0025 * entropy


@torch.no_grad()
def act(agent, obs, layout=torch.contiguous_format):
    """Actions, drawn, for frames uint8 [N, H, W, C]; with their log-probabilities and values."""
    logits, value = agent(images(obs, layout))
    policy = torch.distributions.Categorical(logits=logits)
    action = policy.sample()
    return action, policy.log_prob(action), value


@torch.no_grad()
def infer(idm, obs, layout=torch.contiguous_format):
    """Latents of windows, before the quantiser."""
    return idm.policy_head(idm.features(images(obs, layout)))


def recompute(entries):
    """A golden file's outputs from its inputs (see `lamjax.interop.golden`)."""
    idm, wm, policy = make([int(x) for x in entries["config"]], 0)
    for prefix, model in (("before/idm.", idm), ("before/wm.", wm), ("policy/", policy)):
        weights = {k.removeprefix(prefix): torch.tensor(a) for k, a in entries.items() if k.startswith(prefix)}
        model.load_state_dict(weights)
    obs, out = torch.from_numpy(entries["obs_u8"]), {}

    def put(folder, arrays):
        out.update({folder + name: torch.as_tensor(a).detach().numpy().copy() for name, a in arrays.items()})

    idm.eval(), wm.eval()
    put("eval/", dynamics_loss(idm, wm, obs)[1])
    idm.train(), wm.train()
    parameters = [*idm.parameters(), *wm.parameters()]
    optimizer = adamw(parameters, 3e-4)
    for step in range(3):
        loss, results = dynamics_loss(idm, wm, obs)
        results["grad_norm"] = descend(loss, optimizer, parameters, 2.0)
        if step:
            results = {name: results[name] for name in ("wm_loss", "vq_loss", "vq_perp", "grad_norm")}
        results |= {f"vq.{name}": getattr(idm.vq, name) for name in ("embedding", "ema_count", "ema_weight")}
        put(f"train{step}/", results)
    put("after3/idm.", idm.state_dict())
    put("after3/wm.", wm.state_dict())
    latent, value = policy(images(obs[:, 1]))
    put("policy_out/", {"latent": latent, "value": value})
    return out | gae(entries)


def gae(entries):
    """Advantages by their definition, step by step."""
    reward, value, starts = (entries[f"gae/{name}"] for name in ("rewards", "values", "dones"))
    (t, n), done = reward.shape, np.concatenate([starts, entries["gae/next_done"][None]])
    advantage, values = np.zeros((t + 1, n)), np.concatenate([value, entries["gae/next_value"][None]])
    for i in reversed(range(t)):
        going_on = 1 - done[i + 1]
        delta = reward[i] + 0.999 * going_on * values[i + 1] - value[i]
        advantage[i] = delta + 0.999 * 0.95 * going_on * advantage[i + 1]
    advantage = advantage[:t].astype(np.float32)
    return {"gae/adv": advantage, "gae/returns": advantage + value}
