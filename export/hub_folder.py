"""An engine folder as the Hugging Face Hub likes it: a model card with metadata, graphs, weights, samples.

    dvpd export-hub DIR [--model dvpd-tiny] [--repository OWNER/NAME]

Figures are those that were stored when these weights were measured (``benchmarks/results``), found by
the checkpoint's SHA-256. Nothing is sent anywhere: `hf upload OWNER/NAME DIR` does that.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile

from dvpd.runtime import command
from dvpd.runtime.engines import find_checkpoint, find_engine, verification_problem
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.errors import HubError, InputError, UsageError
from dvpd.runtime.manifest import MANIFEST_NAME, VERIFICATION_NAME, Manifest

ROOT = Path(__file__).resolve().parent.parent
RESULTS, ASSETS = ROOT / "benchmarks" / "results", ROOT / "tests" / "assets"
SAMPLES = ("clip0", "clip3")  # of the tests' recordings, which are CC0 or Apache-2.0
METRICS = {"pesq": "PESQ, wide band", "estoi": "ESTOI", "si_sdr": "SI-SDR, dB"}
LOWERED = "pause_lowered"
WEIGHTS = "model.safetensors"
REPORTS = (MANIFEST_NAME, VERIFICATION_NAME, "verification.md")
BESIDE_CARD = ("training.jsonl", "curves.svg")  # what a card speaks of
TAGS = (
    "audio",
    "speech",
    "speech-enhancement",
    "denoising",
    "noise-suppression",
    "diffusion",
    "onnx",
)
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def build_parser(prog: str = "dvpd export-hub") -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write an engine as a folder for the Hugging Face Hub. Nothing is sent: "
        "`hf upload OWNER/NAME DIR` does that.",
    )
    parser.add_argument("out", type=Path, metavar="DIR", help="folder to write; not there yet")
    parser.add_argument("--model", metavar="NAME|DIR", help="engine (default: as everywhere)")
    parser.add_argument(
        "--repository", metavar="OWNER/NAME", help="where it will be, for the card's examples"
    )
    parser.add_argument(
        "--license", metavar="ID", help="the Hub's id of a licence (default: what the card says)"
    )
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        metavar="CODE",
        help="of the speech; again for more",
    )
    parser.add_argument(
        "--quality",
        type=Path,
        metavar="JSON",
        help="figures from benchmarks/quality.py (default: those stored for these weights)",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "dvpd export-hub") -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(prog), argv, _run)


def _run(args: argparse.Namespace) -> None:
    export(
        find_engine(args.model),
        args.out,
        repository=args.repository,
        licence=args.license,
        languages=args.language,
        quality=args.quality,
    )
    print(args.out)


def export(
    folder: Path,
    out: Path,
    *,
    repository: str | None = None,
    licence: str | None = None,
    languages: Sequence[str] = (),
    quality: Path | None = None,
) -> None:
    """Write the folder, whole or not at all.

    Args:
        folder: The engine.
        out: The folder to write.
        repository: "owner/name", for the examples; None for a placeholder.
        licence: The Hub's id; None for what the model card says.
        languages: Codes of ISO 639, for the metadata.
        quality: Result of ``benchmarks/quality.py``; None for the stored ones.

    Raises:
        InputError: There is something at ``out``, the engine has not been verified, or the licence
            is not known.
        ManifestError: The engine folder is damaged.
        HubError: huggingface_hub, which writes the metadata, is not installed.
    """
    if repository is not None and not REPOSITORY.fullmatch(repository):
        raise UsageError(f"--repository is {repository!r}; expected OWNER/NAME")
    _check_new(out)
    _hub_package()
    manifest = Manifest.load(folder)
    graphs = manifest.verify_graphs(folder)
    if (problem := verification_problem(folder, manifest)) is not None:
        raise InputError(f"{folder} {problem}: python export/verify.py {folder} makes one")
    checkpoint = find_checkpoint(folder, manifest.checkpoint_sha256)
    card_path = _card_path(folder, checkpoint)
    card = card_path.read_text(encoding="utf-8") if card_path else ""
    if licence is None:
        licence = _licence(card)
        if licence is None:
            raise UsageError(
                f"{folder}: its README.md names no licence; give --license, such as mit"
            )
    figures = stored_figures(manifest, quality)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name[:100]}.") as room:
        part = Path(room) / "folder"
        part.mkdir()
        beside = [card_path.parent / name for name in BESIDE_CARD] if card_path else []
        if licence == _licence(card):
            beside.append(ROOT / "LICENSE")
        for path in [*graphs.values(), *(folder / name for name in REPORTS), *beside]:
            if path.is_file():
                shutil.copyfile(path, part / path.name)
        if checkpoint is not None:
            shutil.copyfile(checkpoint, part / WEIGHTS)
        samples = _write_samples(folder, part)
        data = metadata(manifest, figures, licence, languages)
        text = _page(manifest, card, figures, samples, repository or f"OWNER/{manifest.name}")
        (part / "README.md").write_text(f"---\n{data}\n---\n{text}", encoding="utf-8")
        _check_new(out)
        part.rename(out)


def _check_new(out: Path) -> None:
    if os.path.lexists(out):
        raise InputError(f"{out}: exists already; give a folder that is not there yet")


def _hub_package() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise HubError(
            "huggingface_hub, which writes the card's metadata, is missing: pip install 'dvpd[hub]'"
        ) from None


def _card_path(folder: Path, checkpoint: Path | None) -> Path | None:
    """The engine's own card: in its folder, or in the one of the weights that it shares."""
    places = (folder, *([checkpoint.parent] if checkpoint else []))
    return next((path for place in places if (path := place / "README.md").is_file()), None)


def _licence(card: str) -> str | None:
    found = re.search(r"\bweights\s+are\s+under\s+the\s+(\S+)\s+licence", card)
    return found[1].lower() if found else None


def stored_figures(manifest: Manifest, quality: Path | None = None) -> dict[str, Any]:
    """What was measured of these very weights.

    Args:
        manifest: Names the checkpoint.
        quality: A result to look into; None for all that are stored.

    Returns:
        Name of a set of recordings -> "n", "systems" and more, as ``benchmarks/quality.py`` wrote
        it; of several measurements that of the most recordings. Empty if there is none.

    Raises:
        InputError: ``quality`` cannot be read, or is of other weights.
    """
    found: dict[str, Any] = {}
    for path in [quality] if quality else sorted(RESULTS.glob("*/quality*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            models = [
                model
                for model in result["models"]
                if model["checkpoint_sha256"] == manifest.checkpoint_sha256
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: cannot be read as a result of quality.py ({error})"
            ) from None
        for model in models:
            for name, part in model["sets"].items():
                if name not in found or part["n"] > found[name]["n"]:
                    full = model.get("full_steps", model["default"]["n_steps"])  # of its "full"
                    found[name] = part | {"n_steps": full} | {
                        "created": result["created"][:10], "graphs": model["precision"],
                    }  # fmt: skip
    if quality and not found:
        raise InputError(f"{quality}: holds no figures of checkpoint {manifest.checkpoint_sha256}")
    return found


def _mean(part: dict[str, Any], system: str, metric: str) -> float | None:
    """A mean over recordings; None where the set was not measured so."""
    value = part["systems"].get(system, {}).get(metric)
    return None if value is None or value["mean"] is None else float(value["mean"])


def metadata(
    manifest: Manifest, figures: dict[str, Any], licence: str, languages: Sequence[str]
) -> str:
    """The card's YAML, without its fences.

    Args:
        manifest: Of the engine.
        figures: From ``stored_figures``; those with the default steps become the "model-index".
        licence: The Hub's id.
        languages: Codes.
    """
    hub = _hub_package()
    alone = not manifest.sampler.n_steps
    results = [
        hub.EvalResult(
            task_type="audio-to-audio",
            task_name="Speech enhancement",
            dataset_type=f"dvpd-development-{name}",
            dataset_name=f"DVPD development recordings: {name} ({part['n']})",
            metric_type=metric,
            metric_name=f"{METRICS[metric]} ({'0 steps' if alone else _steps(part)})",
            metric_value=round(value, 3),
        )
        for name, part in figures.items()
        for metric in METRICS
        if (value := _mean(part, "predictive" if alone else "full", metric)) is not None
    ]
    live = ("streaming", "real-time") if manifest.causal is not None else ()
    data = hub.ModelCardData(
        language=list(languages) or None,
        license=licence,
        library_name="dvpd",
        pipeline_tag="audio-to-audio",
        tags=[*TAGS, *live],
        metrics=list(METRICS) if results else None,
        model_name=f"{manifest.name} {manifest.version}",
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _write_samples(folder: Path, part: Path) -> dict[str, list[str]]:
    """Enhance the tests' recordings; clip -> names of files below ``part``."""
    made: dict[str, list[str]] = {}
    sources = [path for name in SAMPLES if (path := ASSETS / f"{name}_noisy.flac").is_file()]
    if not sources:
        command.say("no samples: the recordings of the tests are in the source tree alone")
        return made
    (part / "samples").mkdir()
    with Enhancer.open(folder, device="cpu") as enhancer:
        for source in sources:
            clip = source.name.partition("_")[0]
            noisy, rate = soundfile.read(source, dtype="float32")
            enhanced = enhancer.enhance(noisy, rate).wav
            made[clip] = [f"samples/{clip}-{side}.flac" for side in ("noisy", "enhanced")]
            shutil.copyfile(source, part / made[clip][0])
            soundfile.write(part / made[clip][1], enhanced, rate, subtype="PCM_16")
            if (drawn := _draw(noisy, enhanced, rate)) is not None:
                made[clip].append(f"samples/{clip}.png")
                (part / made[clip][-1]).write_bytes(drawn)
    return made


def _draw(noisy: Any, enhanced: Any, rate: int) -> bytes | None:
    from dvpd.runtime.picture import before_after

    try:
        return before_after({"noisy": noisy, "enhanced": enhanced}, rate)
    except ModuleNotFoundError:  # the samples can be heard without a picture
        command.say("no pictures: matplotlib is not installed")
        return None


def _steps(part: dict[str, Any]) -> str:
    n: int = part["n_steps"]
    return f"{n} step" if n == 1 else f"{n} steps"


def _figures_table(figures: dict[str, Any]) -> str:
    header = ["recordings", "", *METRICS.values(), "noise in pauses lowered, dB"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, part in figures.items():
        systems = {"noisy": "noisy", "predictive": "0 steps", "full": _steps(part)}
        for system, label in systems.items():
            values = (_mean(part, system, metric) for metric in (*METRICS, LOWERED))
            places = (2, 3, 1, 0)
            cells = [
                "-" if v is None else f"{v + 0.0:.{p}f}"
                for v, p in zip(values, places, strict=True)
            ]
            first = f"{name} ({part['n']})" if system == "noisy" else ""
            lines.append("| " + " | ".join([first, label, *cells]) + " |")
    days = sorted({part["created"] for part in figures.values()})
    graphs = " and ".join(sorted({part["graphs"] for part in figures.values()}))
    return "\n".join(lines) + (
        f"\n\nMeans over recordings of the project's own development sets, measured {' and '.join(days)} with "
        f"the {graphs} graphs of these weights (checkpoint in `{MANIFEST_NAME}`). They are in-domain: expect "
        "less on other material."
    )


def _page(
    manifest: Manifest, card: str, figures: dict[str, Any], samples: dict[str, list[str]], name: str
) -> str:
    """The card's text: what the engine's own card says, its headings one level up, and what is made here."""
    card = re.sub(r"^#(#+ )", r"\1", card, flags=re.M).strip()
    if not card:
        card = f"# {manifest.name} {manifest.version}\n\nA speech enhancer, made with DVPD."
    intro, mark, rest = card.partition("\n## ")
    signal, total = manifest.signal, manifest.parameters.get("total")
    facts = f"{signal.sample_rate} Hz, {manifest.precision}"
    if isinstance(total, int):
        facts += f", {total:,} parameters"
    if manifest.causal is not None:
        facts += f", {1000 * manifest.causal.latency_samples / signal.sample_rate:g} ms of delay"
    verb = "stream(48000)  # blocks in, blocks out" if manifest.causal else "enhance_file"
    call = f"enhancer.{verb}" if manifest.causal else f'enhancer.{verb}("noisy.wav", "clean.wav")'
    own = f"""
## Use

{facts}. Needs the package `dvpd` with the extras `cpu` and `hub`, no PyTorch.

```python
from dvpd.runtime import Enhancer

with Enhancer.from_pretrained("{name}") as enhancer:
    {call}
```

```bash
dvpd enhance noisy.wav clean.wav --model hf:{name}
```

`{MANIFEST_NAME}` holds the SHA-256 of every graph, which is checked before it is loaded; `{VERIFICATION_NAME}` the
comparison of the graphs with the PyTorch model. `{WEIGHTS}` is for training on. Give `revision=` a commit to get the
same files for ever. Paths such as `docs/training.md` are those of the source tree.
"""
    if samples:
        lines = []
        for clip, files in samples.items():
            lines.append(f"- {clip}: [noisy]({files[0]}), [enhanced]({files[1]})")
            lines += [f"\n  ![{clip}, before and after]({picture})" for picture in files[2:]]
        own += "\n## Samples\n\n" + "\n".join(lines) + "\n"
    if figures:
        own += f"\n## Measured\n\n{_figures_table(figures)}\n"
    return f"{intro.strip()}\n{own}{mark}{rest}".rstrip() + "\n"


if __name__ == "__main__":
    command.leave(main())
