"""The [model] table of a configuration, as a frozen dataclass (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime.errors import InputError

MAX_LOOKAHEAD = 16  # blocks: half a second


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of both branches. The paper's ablations are values of these fields.

    Attributes:
        name: Name of the model, as shipped.
        channels: C, channels of the outer U-Net level; 2C and 4C below. A multiple of 4.
        blocks: ODAM blocks a stage, 1 or 2.
        ffn_factor: Hidden channels of the feed-forward part over its channels.
        state: Slots of the linear attention, or state size of the SSD, for each axis.
        heads: Heads of the SSD scan (the linear form has one).
        decoder_channels: Channels of the FANC decoder at full frequency resolution.
        embedding: Width of the time embedding, even.
        encoder: "fanc", or "uniform" (one convolution of F-stride 3).
        local: "lisa", or "dual_path" in its place.
        scan: "linear" attention, or "ssd" (state-space duality).
        fi_gate: Whether the interaction has its frequency prior.
        norm: "batch" (folds into the convolutions), or "layer" (over channels).
        causal: Whether the network hears only the past (`dvpd.causal`), block by block.
        lookahead_blocks: Blocks of four frames (32 ms) by which a causal network's output comes
            late; it then knows that much of what follows.
    """

    name: str = "dvpd-base"
    channels: int = 24
    blocks: int = 2
    ffn_factor: float = 2.0
    state: int = 16
    heads: int = 4
    decoder_channels: int = 8
    embedding: int = 64
    encoder: str = "fanc"
    local: str = "lisa"
    scan: str = "linear"
    fi_gate: bool = True
    norm: str = "batch"
    causal: bool = False
    lookahead_blocks: int = 0

    def __post_init__(self) -> None:
        """Refuse values that make no network."""
        choices = {
            "encoder": ("fanc", "uniform"),
            "local": ("lisa", "dual_path"),
            "scan": ("linear", "ssd"),
            "norm": ("batch", "layer"),
            "blocks": (1, 2),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"model.{name} is {value!r}; expected one of {allowed}")
        for name in ("channels", "state", "heads", "decoder_channels", "embedding"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; expected at least 1")
        if self.channels % 4 or self.channels % self.heads:
            raise InputError(
                f"model.channels is {self.channels}; expected a multiple of 4 (LISA's groups) "
                f"and of heads ({self.heads})"
            )
        if self.embedding % 2:
            raise InputError(f"model.embedding is {self.embedding}; expected an even number")
        if not 0 <= self.lookahead_blocks <= MAX_LOOKAHEAD:
            raise InputError(
                f"model.lookahead_blocks is {self.lookahead_blocks}; expected 0 to {MAX_LOOKAHEAD}"
            )
        if self.lookahead_blocks and not self.causal:
            raise InputError(
                f"model.lookahead_blocks is {self.lookahead_blocks} without model.causal; expected 0: "
                "such a network hears the whole recording"
            )
        if self.causal and self.scan != "linear":
            raise InputError(
                f"model.scan is {self.scan!r} with model.causal; expected 'linear': the other scan "
                "runs backwards, too"
            )
        if not self.ffn_factor > 0:
            raise InputError(f"model.ffn_factor is {self.ffn_factor}; expected more than 0")
