"""bulk_limits.py: many files and long ones with a network that does nothing."""

from __future__ import annotations

import os
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import SimpleNamespace

import numpy as np
import soundfile

from dvpd.benchmarks import bulk_limits
from dvpd.runtime.bulk import pool


def test_a_job_of_short_files_is_done(tiny_engine, tmp_path, monkeypatch):
    class Process(threading.Thread):
        exitcode = 0

        def __init__(self, target, args, daemon):
            own = Connection(os.dup(args[0].fileno()))  # the parent closes its own
            super().__init__(target=target, args=(own, args[1]), daemon=daemon)

    fake = SimpleNamespace(Pipe=Pipe, Process=Process)
    monkeypatch.setattr(pool, "multiprocessing", SimpleNamespace(get_context=lambda kind: fake))
    monkeypatch.setattr(bulk_limits, "start_process", lambda: None)
    found = bulk_limits.run_short(tmp_path, tiny_engine, 3, 0.2)
    assert found["parent_s"] > 0.0
    assert found["parent_mib"] > 10.0
    made = [soundfile.info(path).duration for path in (tmp_path / "out").glob("*.wav")]
    assert made == [0.2] * 3


def test_a_passing_network_changes_nothing(tiny_engine, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk_limits, "MINUTE", 10 * bulk_limits.SAMPLE_RATE)
    found = bulk_limits.run_long(tmp_path, tiny_engine, 2)
    assert found["peak_mib"] > 10.0
    before, after = (soundfile.read(tmp_path / name)[0] for name in ("in.wav", "out.wav"))
    assert len(before) == 20 * bulk_limits.SAMPLE_RATE
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_the_time_of_the_networks_is_a_difference(tiny_engine):
    found = bulk_limits.network_s(tiny_engine, 0.3)
    assert np.isfinite(found["network_s"])
    assert found["signal_s"] > 0.0
