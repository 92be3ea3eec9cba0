"""dvpd live on an audio system that stands for the real one."""

import contextlib
import json
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from dvpd.runtime import cli, cli_live, duplex
from dvpd.runtime.enhancer import Enhancer

from fake_stream import GAIN, FakeStream, fake_enhancer  # isort: skip  # beside this file

DEVICES = [
    {"name": "Microphone", "max_input_channels": 1, "max_output_channels": 0, "default_samplerate": 16000.0},
    {"name": "Speakers", "max_input_channels": 0, "max_output_channels": 2, "default_samplerate": 48000.0},
]  # fmt: skip


class PortAudioError(Exception):
    pass


class Device:
    """One side: a thread calls back as a sound card would, only faster."""

    opened: list = []  # noqa: RUF012  # emptied by the fixture
    latency, lives = 0.004, 10**9

    def __init__(self, *, device, channels, callback, samplerate, blocksize, dtype, latency):
        assert (dtype, latency) == ("float32", "low")
        if channels > 2:
            raise PortAudioError("Invalid number of channels")
        self.options = {"device": device, "channels": channels, "samplerate": samplerate}
        self.active, self.heard = False, []
        self._callback, self._block = callback, np.full((blocksize, channels), 0.25, np.float32)
        self.opened.append(self)

    def __enter__(self):
        self.active = True
        self._thread = threading.Thread(target=self._play)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.active = False
        self._thread.join()

    def _play(self):
        for _ in range(self.lives):
            if not self.active:
                return
            self._callback(self._block, len(self._block), None, None)
            self.heard.append(self._block[-1].copy())
            time.sleep(0.001)
        self.active = False


@pytest.fixture(autouse=True)
def named_model(monkeypatch):
    """A model that was chosen is not measured, and those that stand in for one cannot be."""
    monkeypatch.setenv("DVPD_ENGINE", "chosen")


@pytest.fixture
def audio(monkeypatch):
    """The fake package, in the place of sounddevice."""

    def query(device=None, kind=None):
        if kind is None:
            return DEVICES
        if device is None:
            device = 0 if kind == "input" else 1
        found = [
            row
            for number, row in enumerate(DEVICES)
            if device == number or str(device).lower() in row["name"].lower()
        ]
        if len(found) != 1 or not found[0][f"max_{kind}_channels"]:
            raise ValueError(f"No {kind} device matching {device!r}")
        return found[0]

    class Input(Device):
        pass

    class Output(Device):
        pass

    package = SimpleNamespace(
        query_devices=query, PortAudioError=PortAudioError, InputStream=Input, OutputStream=Output
    )
    monkeypatch.setitem(sys.modules, "sounddevice", package)
    monkeypatch.setattr(Enhancer, "open", lambda *a, **k: fake_enhancer(package.streams))
    monkeypatch.setattr(cli_live, "LOOK_S", 0.005)
    monkeypatch.setattr(duplex, "SILENT_DEVICE_S", 60.0)  # of a machine with other work
    package.streams = []
    Device.opened.clear()
    return package


@contextlib.contextmanager
def keys(*steps):
    """In the place of the terminal: each key is pressed when so much has been heard."""
    waiting = list(steps)

    def pressed():
        level, key = waiting[0]
        if max((x[0] for x in Device.opened[0].heard), default=0.0) < level:
            return ""
        waiting.pop(0)
        return key

    yield pressed


def test_devices_are_listed(audio, capsys):
    assert cli.main(["live", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "  0  Microphone: 1 in, 0 out, 16000 Hz",
        "  1  Speakers: 0 in, 2 out, 48000 Hz",
    ]
    assert cli.main(["live", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"][1]["outputs"] == 2


def test_the_microphone_is_heard_enhanced_and_the_end_says_how_it_went(audio, monkeypatch, capsys):
    monkeypatch.setattr(cli_live, "_keys", lambda: keys((0.25 * GAIN, "q")))
    assert cli.main(["live", "--json", "--steps", "0", "--input", "micro", "--output", "1"]) == 0
    output, microphone = Device.opened
    assert microphone.options == {"device": "micro", "channels": 1, "samplerate": 16000}
    assert output.options == {"device": 1, "channels": 2, "samplerate": 16000}
    assert audio.streams[0].options["steps"] == 0
    assert max(x[0] for x in output.heard) == max(x[1] for x in output.heard) == 0.25 * GAIN
    printed = capsys.readouterr()
    table = json.loads(printed.out)
    assert table["stats"]["seconds"] > 0
    assert table["device_latency_s"] == {"output": 0.004, "input": 0.004}
    assert table["delay_ms"] > table["latency_ms"] == 2.5
    said = printed.err
    assert "input: Microphone, 16000 Hz" in said
    assert "keys: space compares with the raw sound, q ends" in said
    assert "delay" in said
    assert "interruptions of the input" in said
    assert not any(device.active for device in Device.opened)


def test_a_key_lets_the_raw_sound_through(audio, monkeypatch):
    monkeypatch.setattr(cli_live, "_keys", lambda: keys((0.25 * GAIN, " "), (0.25, "q")))
    assert cli.main(["live"]) == 0
    assert max(x[0] for x in Device.opened[0].heard) == 0.25


def test_meters_delay_and_counts_are_in_one_line(audio):
    from dvpd.runtime.duplex import Duplex

    loop = Duplex(FakeStream(), 16000, 1, block=160, target=480)
    loop.meter_in.add(np.full((10, 1), 0.1, np.float32))
    loop.raw = True
    line = cli_live._line(loop, FakeStream(), {"input": SimpleNamespace(latency=0.01)})
    assert line == (
        "in -20 #####... RAW -99 ........ dB, 42 ms, RTF 0.25, steps 1, late 0, xruns 0/0, drift 0"
    )


@pytest.mark.parametrize("side", ["Input", "Output"])
def test_a_device_that_disappears_ends_it_with_one_line(audio, monkeypatch, capsys, side):
    getattr(audio, f"{side}Stream").lives = 10
    assert cli.main(["live"]) == 1
    name = {"Input": "Microphone", "Output": "Speakers"}[side]
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        last
        == f"dvpd: the {side.lower()} device '{name}' is gone: unplugged, or its audio server has ended"
    )
    assert not any(device.active for device in Device.opened)


def test_an_error_of_the_model_ends_it(audio, monkeypatch, capsys):
    class Broken(FakeStream):
        def process(self, block):
            from dvpd.runtime.errors import BackendError

            raise BackendError("the engine failed")

    monkeypatch.setattr(Enhancer, "open", lambda *a, **k: fake_enhancer([], Broken))
    assert cli.main(["live"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "dvpd: the engine failed"


def test_a_model_in_windows_is_refused_before_anything_is_opened(audio, monkeypatch, capsys):
    @contextlib.contextmanager
    def offline(*_, **__):
        yield SimpleNamespace(manifest=SimpleNamespace(name="dvpd-base", causal=None))

    monkeypatch.setattr(Enhancer, "open", offline)
    assert cli.main(["live"]) == 2
    assert "dvpd-base hears windows of a recording" in capsys.readouterr().err
    assert not Device.opened


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--input", "telephone"], "input: device 'telephone' (No input device matching"),
        (["--output", "0"], "dvpd live --list shows them"),
        (["--channels", "3"], "'Speakers' cannot be opened with 3 channels at 16000 Hz (Invalid"),
        (["--buffer-ms", "0"], "'0' is not a number of ms in [1, 500]"),
    ],
)
def test_bad_choices_are_one_line(audio, args, message, capsys):
    assert cli.main(["live", *args]) in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert cli.main(["live", "--list"]) == 1
    assert "sounddevice is missing: pip install 'dvpd[live]'" in capsys.readouterr().err

    class NoLibrary:
        def find_spec(self, name, path=None, target=None):
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [NoLibrary(), *sys.meta_path])
    assert cli.main(["live", "--list"]) == 1
    assert "apt install libportaudio2" in capsys.readouterr().err


def test_keys_are_read_without_enter(monkeypatch):
    import os

    pty = pytest.importorskip("pty", reason="terminals of POSIX systems")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        with cli_live._keys() as pressed:
            assert pressed() == ""
            os.write(ours, b" q")
            found = ""
            while len(found) < 2:
                found += pressed()
        assert found == " q"
        monkeypatch.undo()
    os.close(ours)
