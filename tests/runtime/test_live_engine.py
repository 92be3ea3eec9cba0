"""Which model a live sound gets: the best one that is computed in time, unless one was named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_live import opened

from dvpd.runtime import engines, live_engine
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.live_engine import open_live


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Called with seconds for a block of dvpd-live; both models are there, and opened ones noted."""
    monkeypatch.delenv("DVPD_ENGINE", raising=False)
    monkeypatch.setattr(engines, "engine_roots", lambda: [tmp_path])

    def begin(seconds: float, names=engines.LIVE_ENGINES) -> list[str]:
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / "manifest.json").touch()
        found = []

        def open_folder(folder, *_args, **_options):
            enhancer, networks = opened()
            networks.seconds = seconds
            enhancer.manifest = replace(enhancer.manifest, name=folder.name)
            found.append(folder.name)
            monkeypatch.setattr(live_engine, "own_clock", lambda _: networks.clock)
            return enhancer

        monkeypatch.setattr(Enhancer, "open", open_folder)
        return found

    return begin


@pytest.mark.parametrize(
    ("seconds", "channels", "name"),
    [(0.023, 1, "dvpd-live"), (0.025, 1, "dvpd-live-tiny"), (0.023, 2, "dvpd-live-tiny")],
)
def test_the_smaller_model_is_taken_where_the_best_is_too_slow(
    machine, capsys, seconds, channels, name
):
    found = machine(seconds)  # 24 of the 32 ms of a block may be used
    assert open_live(None, channels=channels).manifest.name == name
    assert found[-1] == name
    said = capsys.readouterr().err
    assert said == "" if name == "dvpd-live" else "using dvpd-live-tiny (--model dvpd-live" in said


@pytest.mark.parametrize("options", [{"model": "dvpd-live"}, {"model": None, "adapt": False}])
def test_nothing_is_measured_where_the_model_is_named_or_the_output_fixed(machine, options):
    assert machine(1.0) == []
    assert open_live(**options).manifest.name == "dvpd-live"


def test_a_model_of_the_environment_counts_as_named(machine, tmp_path, monkeypatch):
    machine(1.0)
    monkeypatch.setenv("DVPD_ENGINE", str(tmp_path / "dvpd-live"))
    assert open_live(None).manifest.name == "dvpd-live"


@pytest.mark.parametrize("name", engines.LIVE_ENGINES)
def test_the_only_live_model_is_taken(machine, name):
    machine(1.0, (name,))
    assert open_live(None).manifest.name == name


def test_an_engine_that_fails_while_it_is_timed_is_closed(machine, monkeypatch):
    machine(0.0)
    closed = []

    def interrupted(enhancer, *_):
        monkeypatch.setattr(enhancer, "close", lambda: closed.append(True))
        raise KeyboardInterrupt

    monkeypatch.setattr(live_engine, "block_costs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_live(None)
    assert closed == [True]


def test_many_sounds_get_the_model_that_computes_least(machine, tmp_path):
    machine(0.0)
    assert engines.find_live_engine() == tmp_path / "dvpd-live"
    assert engines.find_live_engine(many=True) == tmp_path / "dvpd-live-tiny"
