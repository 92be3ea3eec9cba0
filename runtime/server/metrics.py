"""Figures for Prometheus, in its text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..live import StreamStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labelled = Mapping[str, float]


@dataclass
class Counts:
    """What a server has counted since it began.

    Attributes:
        streams_opened: Live streams that were opened.
        blocks_in: Messages with sound.
        waits_s: Sum of the times from a message with sound to its answer (s).
        longest_wait_s: The longest of them (s).
        ended: Of the live streams that have ended.
        files: Recordings by how they ended: done, failed, refused, left.
        file_audio_s: Length of those that are done (s).
        file_compute_s: Time that they took (s).
        refused_streams: Live streams that were refused.
    """

    streams_opened: int = 0
    blocks_in: int = 0
    waits_s: float = 0.0
    longest_wait_s: float = 0.0
    ended: StreamStats = field(default_factory=StreamStats)
    files: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("done", "failed", "refused", "left"), 0)
    )
    file_audio_s: float = 0.0
    file_compute_s: float = 0.0
    refused_streams: int = 0

    def waited(self, seconds: float) -> None:
        """Count a message with sound.

        Args:
            seconds: Until its answer was ready.
        """
        self.blocks_in += 1
        self.waits_s += seconds
        self.longest_wait_s = max(self.longest_wait_s, seconds)


def add(total: StreamStats, stats: StreamStats) -> StreamStats:
    """Add a stream's figures to others'.

    Args:
        total: Of the others; it is changed.
        stats: The stream's.
    """
    for name in ("blocks", "seconds", "compute_s", "late", "non_finite", "passed"):
        setattr(total, name, getattr(total, name) + getattr(stats, name))
    for steps, n in dict(stats.steps_used).items():  # another thread may go on counting
        total.steps_used[steps] = total.steps_used.get(steps, 0) + n
    return total


def render(counts: Counts, running: Iterable[StreamStats], files: int, waiting_steps: int) -> str:
    """The page.

    Args:
        counts: Of the server.
        running: Figures of the streams that are open.
        files: Recordings that are there.
        waiting_steps: Steps of the next block.
    """
    streams = list(running)
    total = add(StreamStats(), counts.ended)
    for stats in streams:
        add(total, stats)
    by_steps = {f'{{steps="{n}"}}': float(k) for n, k in sorted(total.steps_used.items())}
    by_end = {f'{{result="{name}"}}': float(n) for name, n in counts.files.items()}
    rows: list[tuple[str, str, str, float | Labelled]] = [
        ("streams", "gauge", "Live streams that are open", len(streams)),
        ("streams_opened_total", "counter", "Live streams", counts.streams_opened),
        ("streams_refused_total", "counter", "Refused live streams", counts.refused_streams),
        ("steps", "gauge", "Diffusion steps of the next block", waiting_steps),
        ("blocks_total", "counter", "Blocks of live streams that were computed", total.blocks),
        ("blocks_late_total", "counter", "Of them, missed their deadline", total.late),
        ("blocks_passed_total", "counter", "Of them, passed as they were", total.passed),
        ("blocks_by_steps_total", "counter", "Of them, by their steps", by_steps),
        ("stream_audio_seconds_total", "counter", "Live sound", total.seconds),
        ("stream_compute_seconds_total", "counter", "Time that it took", total.compute_s),
        ("messages_total", "counter", "Messages with sound", counts.blocks_in),
        ("message_wait_seconds_total", "counter", "Until their answers", counts.waits_s),
        ("message_wait_seconds_max", "gauge", "The longest of them", counts.longest_wait_s),
        ("files", "gauge", "Recordings that are there", files),
        ("files_total", "counter", "Recordings by how they ended", by_end),
        ("file_audio_seconds_total", "counter", "Sound in those done", counts.file_audio_s),
        ("file_compute_seconds_total", "counter", "Time they took", counts.file_compute_s),
    ]
    lines = []
    for name, kind, text, value in rows:
        lines += [f"# HELP dvpd_{name} {text}.", f"# TYPE dvpd_{name} {kind}"]
        values = value if isinstance(value, Mapping) else {"": value}
        lines += [f"dvpd_{name}{label} {number:.15g}" for label, number in values.items()]
    return "\n".join(lines) + "\n"
