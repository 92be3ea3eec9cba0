"""The manifest of an engine folder: what its graphs are, written by the export, checked by every reader."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any

from .errors import InputError, ManifestError
from .files import sha256_file
from .schedule import SdeSpec
from .spec import (
    GRAPH_NAMES,
    N_FREQS,
    PRECISIONS,
    CausalSpec,
    SamplerSpec,
    SignalSpec,
    TlbFactors,
)

MANIFEST_FORMAT = 1
MANIFEST_NAME = "manifest.json"
VERIFICATION_NAME = "verification.json"  # written by export/verify.py
MANIFEST_MAX_BYTES = 1 << 20
METADATA_PREFIX = "dvpd."

# Keys of manifest.json; the nested tables list theirs in the dataclasses below.
MANIFEST_KEYS = (
    "format",
    "name",
    "version",
    "signal",
    "sde",
    "sampler",
    "tlb_presets",
    "precision",
    "opset",
    "exporter",
    "checkpoint_sha256",
    "graphs",
    "parameters",
    "macs_per_second",
    "parity",
)
CAUSAL_KEY = "causal"  # a table, of causal models alone
SINGLE_KEY = "single_graphs"  # a table as "graphs", of engines that have them
SINGLE = ".single"  # behind a graph's name: the one for one recording
BLOCK_KEY = "block_graph"  # a table, of causal models that have it
BLOCK, BLOCK_FILE = "block", "block.onnx"


@dataclass(frozen=True)
class GraphFile:
    """A graph's file name inside its engine folder and the SHA-256 of its bytes (hex)."""

    file: str
    sha256: str


@dataclass(frozen=True)
class BlockPoint:
    """Where a sampler stands when it calls the score network, in a graph that holds both networks.

    Attributes:
        t: Diffusion time.
        w_x0: Weight of the predictive magnitude in the diffused one.
    """

    t: float
    w_x0: float


@dataclass(frozen=True)
class BlockFile(BlockPoint, GraphFile):
    """The graph of a causal model's next block: both networks, one step, TLB factors of one."""


def _require(value: object, kind: type, key: str) -> Any:
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ManifestError(
            f"manifest key {key!r} is {type(value).__name__}; expected {kind.__name__}"
        )
    return value


def _sha256_text(value: object, key: str) -> str:
    text: str = _require(value, str, key)
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ManifestError(f"manifest key {key!r} is not a SHA-256 in lower-case hex")
    return text


def _table(cls: type, value: object, key: str) -> Any:
    """Build a frozen dataclass from a JSON table; unknown keys are an error."""
    table: dict[str, Any] = _require(value, dict, key)
    known = {field.name for field in fields(cls)}
    if unknown := sorted(set(table) - known):
        raise ManifestError(f"manifest table {key!r} has unknown keys {unknown}")
    try:
        return cls(**table)
    except InputError as error:
        raise ManifestError(f"manifest table {key!r}: {error}") from None


def _need_keys(table: object, needed: tuple[str, ...], key: str) -> None:
    if missing := [name for name in needed if name not in _require(table, dict, key)]:
        raise ManifestError(f"manifest table {key!r} lacks {missing}; export the engine again")


def _causal(table: Mapping[str, Any]) -> CausalSpec | None:
    """What the manifest says of a causal model."""
    if CAUSAL_KEY not in table:
        return None
    _need_keys(table[CAUSAL_KEY], tuple(f.name for f in fields(CausalSpec)), CAUSAL_KEY)
    spec: CausalSpec = _table(CausalSpec, table[CAUSAL_KEY], CAUSAL_KEY)
    rounds = table["sampler"].get("phase_rounds", 0)
    if rounds:
        raise ManifestError(
            f"manifest sampler phase_rounds is {rounds!r}; expected 0 for a causal model: each round "
            "needs what comes later"
        )
    return spec


def _file_name(value: object, key: str) -> str:
    """A bare file name: a manifest must not reach outside its folder."""
    file: str = _require(value, str, key)
    if file in ("", ".", "..") or any(
        file != path(file).name for path in (PurePosixPath, PureWindowsPath)
    ):
        raise ManifestError(f"manifest {key} is {file!r}; expected a bare file name")
    return file


def _block(table: Mapping[str, Any]) -> BlockFile | None:
    """The graph of one block, where the manifest names one."""
    if BLOCK_KEY not in table:
        return None
    entry = table[BLOCK_KEY]
    _need_keys(entry, tuple(f.name for f in fields(BlockFile)), BLOCK_KEY)
    _file_name(entry["file"], f"{BLOCK_KEY}.file")
    _sha256_text(entry["sha256"], f"{BLOCK_KEY}.sha256")
    for key in ("t", "w_x0"):
        _require(entry[key], float, f"{BLOCK_KEY}.{key}")
    block: BlockFile = _table(BlockFile, entry, BLOCK_KEY)
    return block


def _graph_files(value: object, key: str) -> Mapping[str, GraphFile]:
    """Both graphs' files, as the table ``key`` names them."""
    table: dict[str, Any] = _require(value, dict, key)
    if set(table) != set(GRAPH_NAMES):
        raise ManifestError(f"manifest {key} are {sorted(table)}; expected {sorted(GRAPH_NAMES)}")
    graphs: dict[str, GraphFile] = {}
    for name, entry in table.items():
        place = f"{key}.{name}"
        _need_keys(entry, ("file", "sha256"), place)
        file = _file_name(entry["file"], f"{place}.file")
        graphs[name] = GraphFile(file, _sha256_text(entry["sha256"], f"{place}.sha256"))
    return MappingProxyType(graphs)


@dataclass(frozen=True)
class Manifest:
    """What one engine folder holds; written by the export, checked by every reader.

    Attributes:
        name: Model name, such as "dvpd-base".
        version: Model version.
        signal: Front end that the graphs were trained with.
        sde: Diffusion process.
        sampler: Default sampler settings.
        tlb_presets: Named TLB factors; always includes "none".
        precision: "fp32" or "fp16".
        opset: ONNX opset of the graphs.
        exporter: Versions of the tools that wrote the graphs.
        checkpoint_sha256: SHA-256 of the checkpoint file (hex).
        graphs: "predictive" and "score" -> file and hash.
        parameters: Parameter counts, by part.
        macs_per_second: Multiply-accumulates for a second of audio, by part.
        parity: Results of the export's own checks.
        format: Version of this layout.
        causal: Of a causal model: blocks, states and latency. None for one that hears the whole
            recording.
        single: The same networks for one recording at a time, which CPUs run; empty if there are
            none. Their weights lie in the files of ``graphs``.
        block: Both networks of a causal model on the next block of one stream, which CPUs run; its
            weights lie there, too.
    """

    name: str
    version: str
    signal: SignalSpec
    sde: SdeSpec
    sampler: SamplerSpec
    tlb_presets: Mapping[str, TlbFactors]
    precision: str
    opset: int
    exporter: Mapping[str, Any]
    checkpoint_sha256: str
    graphs: Mapping[str, GraphFile]
    parameters: Mapping[str, Any]
    macs_per_second: Mapping[str, Any]
    parity: Mapping[str, Any]
    format: int = MANIFEST_FORMAT
    causal: CausalSpec | None = None
    single: Mapping[str, GraphFile] = field(default_factory=dict)
    block: BlockFile | None = None

    @property
    def files(self) -> dict[str, GraphFile]:
        """Every graph's file; beside the two "predictive.single", "score.single" and "block"."""
        more = {name + SINGLE: graph for name, graph in self.single.items()}
        return {**self.graphs, **more, **({BLOCK: self.block} if self.block else {})}

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every graph, by the names of ``files``."""
        return {name: graph.sha256 for name, graph in self.files.items()}

    @classmethod
    def from_dict(cls, data: object) -> Manifest:
        """Check a decoded manifest.json and build the manifest.

        Args:
            data: The decoded JSON value.

        Raises:
            ManifestError: A key is missing, unknown, or holds what it must not.
        """
        table: dict[str, Any] = _require(data, dict, "(top level)")
        version = table.get("format")
        if version != MANIFEST_FORMAT or isinstance(version, bool):
            raise ManifestError(
                f"manifest format is {version!r}; this runtime reads format {MANIFEST_FORMAT}: "
                "export the engine again, or install the matching dvpd"
            )
        if missing := [key for key in MANIFEST_KEYS if key not in table]:
            raise ManifestError(f"manifest lacks {missing}; export the engine again")
        if unknown := sorted(set(table) - {*MANIFEST_KEYS, CAUSAL_KEY, SINGLE_KEY, BLOCK_KEY}):
            raise ManifestError(f"manifest has unknown keys {unknown}")
        _need_keys(table["signal"], tuple(f.name for f in fields(SignalSpec)), "signal")
        _need_keys(table["sde"], ("name", "k", "c"), "sde")
        if table["sde"]["name"] == "ouve":
            _need_keys(table["sde"], ("gamma",), "sde")
        # An older manifest does not say how the last step is: as in Algorithm 1.
        _need_keys(table["sampler"], ("t_rs", "n_steps", "alpha"), "sampler")
        signal: SignalSpec = _table(SignalSpec, table["signal"], "signal")
        if signal.n_freqs != N_FREQS:
            raise ManifestError(
                f"manifest n_fft {signal.n_fft} gives {signal.n_freqs} bins; expected {N_FREQS}"
            )
        presets: dict[str, TlbFactors] = {}
        for name, value in _require(table["tlb_presets"], dict, "tlb_presets").items():
            try:
                presets[name] = TlbFactors.from_mapping(value)
            except InputError as error:
                raise ManifestError(f"manifest tlb preset {name!r}: {error}") from None
        if presets.setdefault("none", TlbFactors()) != TlbFactors():
            raise ManifestError("manifest tlb preset 'none' must be all ones")
        if table["precision"] not in PRECISIONS:
            raise ManifestError(
                f"manifest precision is {table['precision']!r}; expected one of "
                f"{', '.join(PRECISIONS)}"
            )
        return cls(
            name=_require(table["name"], str, "name"),
            version=_require(table["version"], str, "version"),
            signal=signal,
            sde=_table(SdeSpec, table["sde"], "sde"),
            sampler=_table(SamplerSpec, table["sampler"], "sampler"),
            tlb_presets=MappingProxyType(presets),
            precision=table["precision"],
            opset=_require(table["opset"], int, "opset"),
            exporter=MappingProxyType(_require(table["exporter"], dict, "exporter")),
            checkpoint_sha256=_sha256_text(table["checkpoint_sha256"], "checkpoint_sha256"),
            graphs=_graph_files(table["graphs"], "graphs"),
            parameters=MappingProxyType(_require(table["parameters"], dict, "parameters")),
            macs_per_second=MappingProxyType(
                _require(table["macs_per_second"], dict, "macs_per_second")
            ),
            parity=MappingProxyType(_require(table["parity"], dict, "parity")),
            causal=_causal(table),
            single=_graph_files(table[SINGLE_KEY], SINGLE_KEY) if SINGLE_KEY in table else {},
            block=_block(table),
        )

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Read ``folder/manifest.json``; the graphs are not opened (see ``verify_graphs``).

        Args:
            folder: An engine folder.

        Raises:
            ManifestError: The folder or the file is missing, unreadable, or not a manifest.
        """
        root = Path(folder)
        path = root / MANIFEST_NAME
        if not root.is_dir():
            raise ManifestError(
                f"{root}: not an engine folder; give the folder that holds {MANIFEST_NAME} and "
                "the two graphs (python export/to_onnx.py writes one)"
            )
        try:
            with open(path, "rb") as stream:
                raw = stream.read(MANIFEST_MAX_BYTES + 1)
        except OSError as error:
            raise ManifestError(
                f"{path}: {error.strerror or error}; give a folder written by "
                "python export/to_onnx.py"
            ) from None
        if len(raw) > MANIFEST_MAX_BYTES:
            raise ManifestError(f"{path}: larger than {MANIFEST_MAX_BYTES} bytes; not a manifest")
        try:
            data = json.loads(raw.decode("utf-8"))
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise ManifestError(f"{path}: not valid JSON ({error})") from None
        try:
            return cls.from_dict(data)
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The JSON value of manifest.json, keys in the documented order."""
        table: dict[str, Any] = {key: getattr(self, key) for key in MANIFEST_KEYS}
        table["signal"] = asdict(self.signal)
        table["sde"] = asdict(self.sde)
        table["sampler"] = asdict(self.sampler)
        table["tlb_presets"] = {
            name: {"skip": [*map(list, f.skip)], "backbone": [*map(list, f.backbone)]}
            for name, f in self.tlb_presets.items()
        }
        table["graphs"] = {name: asdict(graph) for name, graph in self.graphs.items()}
        for key in ("exporter", "parameters", "macs_per_second", "parity"):
            table[key] = dict(table[key])
        if self.causal is not None:
            own = {f.name: getattr(self.causal, f.name) for f in fields(CausalSpec)}
            table[CAUSAL_KEY] = {**own, "state_size": dict(self.causal.state_size)}
        if self.single:
            table[SINGLE_KEY] = {name: asdict(graph) for name, graph in self.single.items()}
        if self.block is not None:
            table[BLOCK_KEY] = asdict(self.block)
        return table

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def verify_graphs(self, folder: str | Path) -> dict[str, Path]:
        """Check that the graphs' files are the ones that this manifest describes.

        Done before any parser sees a graph, so a truncated or exchanged file ends here.

        Args:
            folder: The engine folder.

        Returns:
            Name as in ``files`` -> path.

        Raises:
            ManifestError: A graph is missing, unreadable, or has another SHA-256.
        """
        return {name: self.verify_graph(folder, name) for name in self.files}

    def verify_graph(self, folder: str | Path, name: str) -> Path:
        """Check one graph's file; see ``verify_graphs``.

        Args:
            folder: The engine folder.
            name: As in ``files``.

        Returns:
            Its path.

        Raises:
            ManifestError: As there.
        """
        graph = self.files[name]
        path = Path(folder) / graph.file
        try:
            got = sha256_file(path)
        except OSError as error:
            raise ManifestError(
                f"{path}: {error.strerror or error}; the manifest names this file as the "
                f"{name} graph: export the engine again"
            ) from None
        if got != graph.sha256:
            raise ManifestError(
                f"{path}: SHA-256 is {got[:12]}..., the manifest says {graph.sha256[:12]}...: "
                "the file is damaged or of another export; export or copy the engine again"
            )
        return path


def manifest_to_metadata(manifest: Manifest) -> dict[str, str]:
    """The manifest as ONNX ``metadata_props``: string map, keys prefixed "dvpd.".

    The graphs' hashes are left out, as a file cannot hold its own. Strings stay as they are;
    everything else is JSON.

    Args:
        manifest: The manifest of the engine.
    """
    table = manifest.to_dict()
    hashes = ("graphs", SINGLE_KEY, BLOCK_KEY)
    table = {key: value for key, value in table.items() if key not in hashes}
    return {
        METADATA_PREFIX + key: value
        if isinstance(value, str)
        else json.dumps(value, sort_keys=True, allow_nan=False)
        for key, value in table.items()
    }


def metadata_to_dict(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Decode ``metadata_props`` back into the manifest's keys; other prefixes are ignored.

    Args:
        metadata: String map of an ONNX model.

    Raises:
        ManifestError: A value cannot be decoded.
    """
    text_keys = {"name", "version", "precision", "checkpoint_sha256"}
    table: dict[str, Any] = {}
    for full_key, text in metadata.items():
        if not full_key.startswith(METADATA_PREFIX):
            continue
        key = full_key[len(METADATA_PREFIX) :]
        try:
            table[key] = text if key in text_keys else json.loads(text)
        except ValueError as error:
            raise ManifestError(f"graph metadata {full_key!r} is not JSON ({error})") from None
    return table


def check_metadata(metadata: Mapping[str, str], manifest: Manifest, graph: str) -> None:
    """Refuse a graph whose own metadata contradicts the manifest beside it.

    Args:
        metadata: The graph's ``metadata_props``.
        manifest: The folder's manifest.
        graph: Graph name, for the message.

    Raises:
        ManifestError: The metadata is missing or names another model, version or constant.
    """
    expected = json.loads(json.dumps(manifest.to_dict()))
    received = metadata_to_dict(metadata)
    keys = ("format", "name", "version", "precision", "checkpoint_sha256", "signal", "sde")
    for key in keys:
        if received.get(key) != expected[key]:
            raise ManifestError(
                f"the {graph} graph says {METADATA_PREFIX}{key} = {received.get(key)!r}, the "
                f"manifest {expected[key]!r}: graph and manifest are of different exports; "
                "export the engine again"
            )
