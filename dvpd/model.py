"""The two networks of DVPD: the predictive branch and the score branch.

Read from top to bottom: shapes stand at the ends of the lines that change them. Inputs are
power-compressed spectra [B, channels, T frames, 257 bins] with T a multiple of 4.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .causal import Grid, LookAhead, advance
from .config import ModelConfig
from .fanc import FANCDecoder, FANCEncoder, UniformDecoder, UniformEncoder
from .interaction import Interaction
from .runtime.spec import FRAME_MULTIPLE, N_FREQS, CausalSpec, SignalSpec, stream_latency
from .unet import UNet


class TimeEmbedding(nn.Module):
    """Fourier features of log t with stored frequencies, two linear layers, SiLU: [B] -> [B, E]."""

    frequencies: Tensor

    def __init__(self, width: int, seed: int = 0) -> None:
        """Make the embedding; the frequencies are drawn once and kept in the checkpoint."""
        super().__init__()
        draw = torch.randn(width // 2, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("frequencies", draw)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """Embed diffusion times ``t`` in (0, 1), [B]."""
        angle = torch.log(t.float()).unsqueeze(-1) * (2 * math.pi * 0.5 * self.frequencies.float())
        x = torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1).to(self.hidden.weight.dtype)
        x = nn.functional.silu(self.hidden(x))
        return nn.functional.silu(self.out(x))


def _encoder(config: ModelConfig, c_in: int, embedding: int = 0) -> nn.Module:
    kind = FANCEncoder if config.encoder == "fanc" else UniformEncoder
    return kind(c_in, config.channels, config.norm, embedding, config.causal)


def _decoder(config: ModelConfig, c_out: int) -> FANCDecoder | UniformDecoder:
    kind = FANCDecoder if config.encoder == "fanc" else UniformDecoder
    return kind(config.channels, config.decoder_channels, c_out, config.norm, config.causal)


class PredictiveNet(nn.Module):
    """Noisy spectrum -> estimate of the clean one, and six feature maps for the score branch.

    The estimate is (1 + M) Y + R with a complex mask M and a residual R that both start at zero: an
    untrained network returns its input.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Make the branch."""
        super().__init__()
        self.encoder = _encoder(config, 6 if config.lookahead_blocks else 3)
        self.unet = UNet(config, bottleneck_stages=1)
        self.decoder = _decoder(config, 4)
        self.ahead = LookAhead(config.lookahead_blocks)

    def forward(self, noisy: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``noisy`` [B, 3, T, 257] -> ``clean_ri`` [B, 2, T, 257] and the features."""
        late = self.ahead.late(noisy)
        heard = self.ahead.beside(late, noisy).to(self.decoder.last.weight.dtype)
        enc = self.encoder(heard)  # [B, C, T, 128]
        out, stages = self.unet(enc)
        decoded = self.ahead.cut(self.decoder(out, enc))
        m_r, m_i, r_r, r_i = decoded.to(noisy.dtype).split(1, dim=1)
        y_r, y_i = self.ahead.cut(late)[:, :2].split(1, dim=1)
        real = y_r + m_r * y_r - m_i * y_i + r_r
        imag = y_i + m_r * y_i + m_i * y_r + r_i
        return self.ahead.begun(torch.cat([real, imag], dim=1)), [enc, *stages]


class ScoreNet(nn.Module):
    """Diffused magnitude, time and features -> sigma * z, the noise that is in it.

    The output is (1 + a) x_t - r with a and r from the decoder, both zero at the start: since
    sigma z = x_t - mean, what is left to learn is the mean, a clean magnitude.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Make the branch."""
        super().__init__()
        c, e = config.channels, config.embedding
        self.embedding = TimeEmbedding(e)
        self.encoder = _encoder(config, 1, e)
        self.unet = UNet(config, bottleneck_stages=2)
        widths = (c, c, 2 * c, 4 * c, 2 * c, c)
        grids = [Grid.at(level) if config.causal else None for level in (0, 0, 1, 2, 1, 0)]
        self.interactions = nn.ModuleList(
            Interaction(w, e, config.fi_gate, config.norm, grid)
            for w, grid in zip(widths, grids, strict=True)
        )
        self.decoder = _decoder(config, 2)
        self.ahead = LookAhead(config.lookahead_blocks)

    def forward(
        self,
        xt: Tensor,
        t: Tensor,
        feats: list[Tensor],
        tlb_skip: Tensor | None = None,
        tlb_backbone: Tensor | Sequence[None] | None = None,
    ) -> Tensor:
        """``xt`` [B, 1, T, 257], ``t`` [B], six ``feats`` -> ``sigma_z`` [B, 1, T, 257].

        Without factors they are ones. A causal network then leaves out of its state what they would
        ask for, unless ``tlb_backbone`` is (None, None).
        """
        emb = self.embedding(t)
        enc = self.encoder(self.ahead.delay(xt).to(self.decoder.last.weight.dtype), emb)
        enc = self.interactions[0](enc, feats[0], emb)
        out, _ = self.unet(
            enc,
            lambda i, x: self.interactions[i](x, feats[i], emb),
            tlb_skip,
            tlb_backbone,
        )
        a, r = self.ahead.cut(self.decoder(out, enc)).to(xt.dtype).split(1, dim=1)
        sigma_z: Tensor = self.ahead.begun(xt + a * xt - r)
        return sigma_z


class DVPD(nn.Module):
    """Both branches, as trained together."""

    def __init__(self, config: ModelConfig) -> None:
        """Make both branches from one config."""
        super().__init__()
        self.config = config
        self.predictive = PredictiveNet(config)
        self.score = ScoreNet(config)


@torch.no_grad()
def causal_spec(model: DVPD, signal: SignalSpec) -> CausalSpec | None:
    """What a manifest says of a causal model; None for one that hears whole recordings.

    Args:
        model: In eval mode.
        signal: The front end.
    """
    if not model.config.causal:
        return None
    on_meta = copy.deepcopy(model).to("meta")
    noisy = torch.empty(1, 3, FRAME_MULTIPLE, N_FREQS, device="meta")
    (_, feats), predictive = advance(on_meta.predictive, None, noisy)
    factors = torch.empty(2, 2, device="meta")
    t = torch.empty(1, device="meta")
    _, score = advance(on_meta.score, None, noisy[:, :1], t, feats, factors, factors)
    return CausalSpec(
        lookahead_blocks=model.config.lookahead_blocks,
        state_size={"predictive": predictive.shape[1], "score": score.shape[1]},
        latency_samples=stream_latency(signal, model.config.lookahead_blocks),
    )
