"""ODAM: omni-directional attention, the global part of a stage (paper section 3.3).

The published block scans with Mamba in raster orders; a serial scan of T x F steps exports to
nothing. Two matrix forms stand in for it, both bidirectional along each axis, behind one interface
(u [B, T, F, C], channels last -> same shape):

- ``LinearScan``: gated linear attention (cf. arXiv 2405.16605). The keys are normalised along the
  axis rather than at every output, so M_n = sum_l k_nl v_l / sum_l k_nl are weighted means of the
  values (bounded, safe in half precision) and the output is sum_n q_n M_n: no division per point,
  no L x L matrix, no exponent.
- ``SSDScan``: state-space duality (Mamba-2, arXiv 2405.21060) in chunks, equal to the recurrence.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from .causal import BlockMean, Grid, Past, Stateful, lower_triangle
from .layers import ConvNorm

CHUNK = 32  # frames of the causal scan that are one product
AT_ONCE = 64  # chunks, 16 s: more, of long recordings, are taken one after another
KEY_FLOOR = 1e-4  # keeps a mean over no keys at zero instead of 0 / 0


class LinearScan(nn.Module):
    """Linear attention along frequency within each frame and along time within each band.

    Along frequency every point has its own key and query. Along time keys and queries belong to the
    frame (from its mean over frequency) and the state is kept for every band and channel: what a
    slot holds is a weighted mean spectrum, for example of the frames without speech. Both work on
    the channels-last view, where keys are plain products and nothing is transposed in between;
    measured against keys at every point along time, in NCHW, a block costs half on OpenVINO.
    """

    def __init__(self, channels: int, state: int) -> None:
        """Make the scan with ``state`` slots an axis."""
        super().__init__()
        self.freq_key = nn.Linear(channels, state)
        self.freq_query = nn.Linear(channels, state)
        self.time_key = nn.Linear(channels, state)
        self.time_query = nn.Linear(channels, state)

    def forward(self, u: Tensor) -> Tensor:
        """Mix ``u`` [B, T, F, C] along both axes and sum the two results, [B, T, F, C]."""
        return self._along_frequency(u) + self._along_time(u)

    def _along_frequency(self, v: Tensor) -> Tensor:
        k = torch.sigmoid(self.freq_key(v))  # [B, T, F, N]
        q = torch.sigmoid(self.freq_query(v))  # [B, T, F, N]
        total = k.float().sum(2).unsqueeze(-1) + KEY_FLOOR  # [B, T, N, 1]
        mean = ((k.transpose(-1, -2) @ v).float() / total).to(v.dtype)  # [B, T, N, C]
        return q @ mean

    def _time_keys(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (float32) and queries of the frames, [B, T, N] each."""
        frame = v.float().mean(2).to(v.dtype)  # [B, T, C]
        weight = torch.cat([self.time_key.weight, self.time_query.weight])
        bias = torch.cat([self.time_key.bias, self.time_query.bias])
        k, q = torch.sigmoid(nn.functional.linear(frame, weight, bias)).chunk(2, dim=-1)
        return k.float(), q

    def _along_time(self, v: Tensor) -> Tensor:
        n_bins = v.shape[2]
        k, q = self._time_keys(v)
        k = (k / (k.sum(1, keepdim=True) + KEY_FLOOR)).to(v.dtype)
        mean = k.transpose(-1, -2) @ v.flatten(2)  # [B, N, F C]
        out: Tensor = (q @ mean).unflatten(2, (n_bins, -1))
        return out


class CausalLinearScan(Stateful, LinearScan):
    """Linear attention whose slots forget along time by evidence, not by the clock.

    With w = b k (b in (0, 1) a slot, k the frame's key) and v the frame's values,

        S_t = (1 - w_t) S_(t-1) + w_t v_t,   Z_t = (1 - w_t) Z_(t-1) + w_t,   out_t = q_t S_t / Z_t

    S / Z is the mean of all values so far by weights that only later evidence for the same slot
    lowers: a long pause makes no slot forget speech. Z goes to 1; it makes the mean right
    from the first frame on.
    """

    def __init__(self, channels: int, state: int) -> None:
        """Make the scan with ``state`` slots an axis; they start with memories of 64 to 1024 frames."""
        super().__init__(channels, state)
        rate = 2.0 ** -torch.linspace(5, 9, state)  # keys start at one half
        self.forget = nn.Parameter(torch.logit(rate))

    def _along_time(self, v: Tensor) -> Tensor:
        n_bins = v.shape[2]
        k, q = self._time_keys(v)
        w = torch.sigmoid(self.forget.float()) * k  # [B, T, N]
        values = v.flatten(2)  # [B, T, F C]
        if self.memory is None and CHUNK < v.shape[1] <= AT_ONCE * CHUNK:
            at_once: Tensor = self._all_chunks(w, q, values).unflatten(2, (n_bins, -1))
            return at_once
        chunk = CHUNK if self.memory is None else self.memory.chunk
        parts = [(w, q, values)]
        if chunk is not None and v.shape[1] > chunk:
            parts = list(zip(*(x.split(chunk, dim=1) for x in (w, q, values)), strict=True))
        mean = self.recall(v, w.shape[2], values.shape[2])  # S, [B, N, F C]
        total = self.recall(v, w.shape[2])  # Z, [B, N]
        out = []
        for part in parts:
            y, mean, total = self._chunk(*part, mean, total)
            out.append(y)
        self.keep(mean)
        self.keep(total)
        whole = out[0] if len(out) == 1 else torch.cat(out, dim=1)
        split: Tensor = whole.unflatten(2, (n_bins, -1))
        return split

    def _chunk(
        self, w: Tensor, q: Tensor, v: Tensor, mean: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of one chunk [B, Q, F C], and S and Z after it."""
        log, share = self._shares(w)
        left = torch.exp(log)
        y, z = self._outputs(q, v, share, left, mean, total)
        mean = self._gain(v, share) + left[:, -1:].transpose(1, 2) * mean
        return y, mean, z[:, -1:].squeeze(1)

    def _all_chunks(self, w: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """Outputs [B, T, F C] from no past, all chunks at once.

        The S and Z at a chunk's start are what the chunks before it gain, less what was forgotten
        since: one product in place of a step for each chunk. Unrolled, those steps took a compiler
        minutes, the longer the crops the more.
        """
        batch, length = w.shape[:2]
        extra = -length % CHUNK
        parts = (nn.functional.pad(x, (0, 0, 0, extra)) if extra else x for x in (w, q, v))
        w, q, v = (x.unflatten(1, (-1, CHUNK)).flatten(0, 1) for x in parts)  # [B K, Q, ...]
        log, share = self._shares(w)
        left = torch.exp(log)
        until = torch.cumsum(log[:, -1].float().unflatten(0, (batch, -1)), dim=1).transpose(1, 2)
        before = nn.functional.pad(until[..., :-1], (1, 0))  # [B, N, K], to each chunk's start
        earlier = lower_triangle(until.shape[2], w.device).tril(-1)  # [K, K]
        gap = torch.relu(until.unsqueeze(2) - before.unsqueeze(3))
        carry = torch.exp(-gap) * earlier  # [B, N, K, K]
        gain = self._gain(v, share).unflatten(0, (batch, -1)).transpose(1, 2)  # [B, N, K, F C]
        weight = share[:, -1].sum(1).unflatten(0, (batch, -1)).transpose(1, 2)  # [B, N, K]
        with torch.autocast(v.device.type, torch.bfloat16, False):  # as exact as step by step
            mean = (carry @ gain).transpose(1, 2).flatten(0, 1)  # [B K, N, F C]
        total = (carry * weight.unsqueeze(2)).sum(3).transpose(1, 2).flatten(0, 1)  # [B K, N]
        y, _ = self._outputs(q, v, share, left, mean, total)
        whole: Tensor = y.unflatten(0, (batch, -1)).flatten(1, 2)[:, :length]
        return whole

    def _shares(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Log of what is left since the chunk's start [B, Q, N], each frame's share [B, Q, Q, N]."""
        n = w.shape[1]
        past = self.shared(("past", str(n)), lambda: lower_triangle(n, w.device))  # [Q, Q]
        log = past @ torch.log(1.0 - w)
        gap = log.unsqueeze(1) - log.unsqueeze(2)  # [B, Q, Q, N], >= 0 where the column is earlier
        return log, torch.exp(-torch.relu(gap)) * past[..., None] * w.unsqueeze(1)

    def _outputs(
        self, q: Tensor, v: Tensor, share: Tensor, left: Tensor, mean: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs of a chunk [B, Q, F C] and its Z [B, Q, N], from S and Z at its start."""
        z = share.sum(2) + left * total.unsqueeze(1)
        asked = q.float() / (z + KEY_FLOOR)
        within = (share * asked.unsqueeze(2)).sum(3).to(v.dtype)  # [B, Q, Q]
        return within @ v + (asked * left).to(v.dtype) @ mean.to(v.dtype), z

    def _gain(self, v: Tensor, share: Tensor) -> Tensor:
        """What a chunk adds to S, [B, N, F C]."""
        last = share[:, -1:].squeeze(1).transpose(1, 2).to(v.dtype)  # [B, N, Q]
        return (last @ v).float()


def ssd_recurrence(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The plain recurrence, the reference of `ssd_chunked`; see there for the shapes."""
    h = x.new_zeros(*x.shape[:-3], x.shape[-2], b.shape[-1], x.shape[-1])  # [..., H, N, P]
    out = []
    for i in range(x.shape[-3]):
        decay = torch.exp(dt[..., i, :] * a)[..., None, None]
        write = b[..., i, None, :, None] * (dt[..., i, :, None] * x[..., i, :, :])[..., None, :]
        h = decay * h + write
        out.append((c[..., i, None, None, :] @ h).squeeze(-2))
    return torch.stack(out, dim=-3)


def ssd_chunked(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int = 32) -> Tensor:
    """h_l = exp(dt_l A) h_{l-1} + dt_l B_l x_l^T, y_l = C_l^T h_l, as products within chunks.

    Args:
        x: values [..., L, H, P].
        dt: step sizes >= 0 [..., L, H].
        a: decay rates <= 0 [H].
        b: input maps [..., L, N], shared by the heads.
        c: output maps [..., L, N].
        chunk: steps a chunk; L is padded up to a multiple (with dt = 0: no effect).

    Returns:
        y [..., L, H, P]. All exponents are <= 0. Source: arXiv 2405.21060, section 6.
    """
    length = x.shape[-3]
    extra = -length % chunk
    x = nn.functional.pad(x, (0, 0, 0, 0, 0, extra)).unflatten(-3, (-1, chunk))  # [..., K, Q, H, P]
    dt = nn.functional.pad(dt, (0, 0, 0, extra)).unflatten(-2, (-1, chunk))  # [..., K, Q, H]
    b = nn.functional.pad(b, (0, 0, 0, extra)).unflatten(-2, (-1, chunk))  # [..., K, Q, N]
    c = nn.functional.pad(c, (0, 0, 0, extra)).unflatten(-2, (-1, chunk))
    log = torch.cumsum(dt * a, dim=-2).movedim(-1, -2)  # [..., K, H, Q], decreasing, <= 0
    xdt = (x * dt.unsqueeze(-1)).movedim(-2, -3)  # [..., K, H, Q, P]
    # within a chunk: L[i, j] = exp(log_i - log_j) for j <= i
    keep = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    gap = (log.unsqueeze(-1) - log.unsqueeze(-2)).masked_fill(~keep, float("-inf"))
    inner = torch.exp(gap) * (c @ b.transpose(-1, -2)).unsqueeze(-3)  # [..., K, H, Q, Q]
    y = inner @ xdt
    # what each chunk leaves behind, carried over the chunks before it
    left = torch.exp(log[..., -1:] - log).unsqueeze(-1) * xdt  # [..., K, H, Q, P]
    states = b.unsqueeze(-3).transpose(-1, -2) @ left  # [..., K, H, N, P]
    total = torch.cumsum(log[..., -1], dim=-2).movedim(-1, -2)  # [..., H, K], to each chunk's end
    before = nn.functional.pad(total[..., :-1], (1, 0))  # [..., H, K], to each chunk's start
    n = total.shape[-1]
    past = torch.ones(n, n, dtype=torch.bool, device=x.device).tril(-1)
    carry = (before.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(~past, float("-inf"))
    moved = states.movedim(-4, -3).flatten(-2)  # [..., H, K, N P]
    start = (torch.exp(carry) @ moved).unflatten(-1, states.shape[-2:]).movedim(-3, -4)
    y = y + torch.exp(log).unsqueeze(-1) * (c.unsqueeze(-3) @ start)
    out: Tensor = y.movedim(-3, -2).flatten(-4, -3)[..., :length, :, :]
    return out


class SSDScan(nn.Module):
    """Selective scan by state-space duality along four directions, summed."""

    def __init__(self, channels: int, state: int, heads: int, chunk: int = 32) -> None:
        """Make the scan; decays start between 1/16 and 1 a step."""
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels ({channels}) must be a multiple of heads ({heads})")
        self.heads, self.state, self.chunk = heads, state, chunk
        self.project = nn.ModuleList(nn.Linear(channels, 2 * state + heads) for _ in range(2))
        self.log_a = nn.Parameter(torch.log(torch.linspace(1 / 16, 1, heads)).repeat(4, 1))

    def forward(self, u: Tensor) -> Tensor:
        """Scan ``u`` [B, T, F, C] forward and backward along F and along T; the sum, same shape."""
        rows = (u, u.transpose(1, 2))  # [B, T, F, C], [B, F, T, C]
        out = []
        for axis, row in enumerate(rows):
            b, c, dt = self.project[axis](row).split([self.state, self.state, self.heads], dim=-1)
            dt = nn.functional.softplus(dt.float())
            x = row.unflatten(-1, (self.heads, -1)).float()
            args = (x, dt, b.float(), c.float())
            total = torch.zeros_like(x)
            for backward in (False, True):
                a = -torch.exp(self.log_a[2 * axis + backward].float())
                v, d, bb, cc = (t.flip(s) if backward else t
                                for t, s in zip(args, (-3, -2, -2, -2), strict=True))  # fmt: skip
                y = ssd_chunked(v, d, a, bb, cc, self.chunk)
                total = total + (y.flip(-3) if backward else y)
            out.append(total.flatten(-2).to(u.dtype))
        return out[0] + out[1].transpose(1, 2)


class Mixer(nn.Module):
    """1x1 to u and gate z; depthwise 3x3; scans; times sigmoid(z); channel attention; 1x1 out."""

    def __init__(
        self,
        channels: int,
        state: int,
        heads: int,
        scan: str,
        norm: str,
        grid: Grid | None = None,
    ) -> None:
        """Make the mixer; ``scan`` is "linear" or "ssd". With a ``grid`` it is causal."""
        super().__init__()
        causal = grid is not None
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.local = ConvNorm(channels, channels, 3, groups=channels, norm=norm, causal=causal)
        self.gate = ConvNorm(channels, channels, norm=norm)
        self.past = BlockMean(grid) if grid else None
        self.scan: nn.Module
        if scan == "linear":
            self.scan = (CausalLinearScan if causal else LinearScan)(channels, state)
        elif scan == "ssd":
            self.scan = SSDScan(channels, state, heads)
        else:
            raise ValueError(f"scan is {scan!r}; it must be 'linear' or 'ssd'")
        self.attention = nn.Conv2d(channels, channels, 1)
        self.out = ConvNorm(channels, channels, norm=norm, zero_init=True)

    def forward(self, x: Tensor) -> Tensor:
        """Mix ``x`` [B, C, T, F]."""
        u = torch.relu(self.local(self.value(x)))
        v = u.permute(0, 2, 3, 1)  # [B, T, F, C], a view
        y = (self.scan(v) + v).permute(0, 3, 1, 2) * torch.sigmoid(self.gate(x))
        if self.past is not None:
            mean = self.past(y.float().mean(3, keepdim=True)).to(y.dtype)  # [B, C, J, 1]
            scaled = self.past.grid.scale(y, torch.sigmoid(self.attention(mean)))
        else:
            mean = y.float().mean((2, 3), keepdim=True).to(y.dtype)  # [B, C, 1, 1]
            scaled = y * torch.sigmoid(self.attention(mean))
        out: Tensor = self.out(scaled)
        return out


class FeedForward(nn.Module):
    """Gated depthwise-3x3 feed-forward: out(dw(a) * sigmoid(dw(b))).

    A ``causal`` one keeps the past of its input, which has fewer channels than what is inside.
    """

    def __init__(self, channels: int, hidden: int, norm: str, causal: bool = False) -> None:
        """Make the layer with ``hidden`` channels inside."""
        super().__init__()
        local = partial(ConvNorm, groups=hidden, norm=norm, padding=(1 - causal, 1))
        self.past = Past() if causal else nn.Identity()
        self.value = nn.Conv2d(channels, hidden, 1, bias=False)
        self.gate = nn.Conv2d(channels, hidden, 1, bias=False)
        self.value_local = local(hidden, hidden, 3)
        self.gate_local = local(hidden, hidden, 3)
        self.out = ConvNorm(hidden, channels, norm=norm, zero_init=True)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x`` [B, C, T, F]."""
        x = self.past(x)
        gate = torch.sigmoid(self.gate_local(self.gate(x)))
        out: Tensor = self.out(self.value_local(self.value(x)) * gate)
        return out


class ODAM(nn.Module):
    """x + mixer(x), then x + feed-forward(x); [B, C, T, F] -> same shape."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        state: int,
        heads: int,
        scan: str,
        norm: str,
        grid: Grid | None = None,
    ) -> None:
        """Make the block with ``hidden`` channels in the feed-forward part; causal with a ``grid``."""
        super().__init__()
        self.mixer = Mixer(channels, state, heads, scan, norm, grid)
        self.ffn = FeedForward(channels, hidden, norm, grid is not None)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both residual steps to ``x`` [B, C, T, F]."""
        x = x + self.mixer(x)
        out: Tensor = x + self.ffn(x)
        return out
