"""ONNX Runtime sessions, in the worker process. No other module imports onnxruntime.

`load` and `run` are called through the worker; `Session` is for other code that runs there.
"""

from __future__ import annotations

import ctypes
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from explorer.errors import ExplorerError, InputError, SessionError
from explorer.runtime import arrays, gpu
from explorer.runtime.arrays import Array
from explorer.runtime.context import Context
from explorer.runtime.refusals import reason, refusal

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_MISSING_LIBRARY = re.compile(r"(\S+): cannot open shared object file")


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What to make a session from.

    model           path of an .onnx file
    provider        "cuda" or "cpu", as `choose_provider` returned it
    data_folder     where the model's external data lies; None: beside the model
    optimization    "all", "extended", "basic" or "disabled"
    optimized_model where ONNX Runtime writes the graph as it runs it, weights in a file beside it; also records
                    which provider each node was given to
    node_times      prefix of the file to which it writes how long each node took on the host
    sdpa_kernel     attention kernels that CUDA may use: 1 Flash, 2 memory-efficient, 8 cuDNN, 16 MATH, or a sum of
                    these; 0 leaves the choice to ONNX Runtime
    tf32            whether CUDA may round the factors of float32 products to TF32, as it does by default
    """

    model: str
    provider: str
    data_folder: str | None = None
    optimization: str = "all"
    optimized_model: Path | None = None
    node_times: Path | None = None
    sdpa_kernel: int = 0
    tf32: bool = True


class Session:
    """A loaded model. SessionError when ONNX Runtime refuses it, or does not put it on the provider asked for."""

    def __init__(self, spec: SessionSpec) -> None:
        self._name = Path(spec.model).name
        self._device = spec.provider
        options = _options(spec)
        names = [PROVIDERS[spec.provider]] if spec.provider == "cpu" else list(PROVIDERS.values())
        asked = {"use_tf32": str(int(spec.tf32)), "sdpa_kernel": str(spec.sdpa_kernel)}
        settings = [asked if name == PROVIDERS["cuda"] else {} for name in names]
        start = time.perf_counter()
        try:
            self._session = ort.InferenceSession(
                spec.model, options, providers=names, provider_options=settings, enable_fallback=0
            )
        except Exception as error:
            subject = f"ONNX Runtime {ort.__version__} cannot load {self._name}"
            raise refusal(subject, error, "try a lower optimization level") from error
        self.load_s: float = time.perf_counter() - start
        if PROVIDERS[spec.provider] not in self._session.get_providers():
            found = ", ".join(self._session.get_providers())
            raise SessionError(f"{self._name} was to run on {names[0]}, but its session has {found}; use provider cpu.")

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers the session really has, the preferred one first."""
        return tuple(self._session.get_providers())

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs named (None: all). InputError if the feeds do not fit, SessionError if the run fails."""
        names = [output.name for output in self._session.get_outputs()]
        wanted = names if outputs is None else list(outputs)
        if unknown := sorted(set(wanted) - set(names)):
            raise InputError(
                f"{self._name} has the outputs {', '.join(names)}, not {', '.join(unknown)}; ask for those."
            )
        values = self._values(feeds)
        computed = [name for name in wanted if name not in values]
        with self._refusing():
            results = self._session.run_with_ort_values(computed, values) if computed else []
        found = {name: _to_numpy(value) for name, value in zip(computed, results, strict=True)}
        # An output that is an input shares its memory, which goes with the input
        return {name: found[name] if name in found else _to_numpy(values[name]).copy() for name in wanted}

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], None]:
        """A function that runs the model once and waits until the device is done.

        The inputs are copied to the device here, once, and the outputs stay there: what the function takes is the
        model's own time. It raises as `run` does.
        """
        values = self._values(feeds)
        binding = self._session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)  # copies to where the input's consumer runs
        for output in self._session.get_outputs():
            binding.bind_output(output.name, self._device)
        binding.synchronize_inputs()
        return partial(self._run_bound, binding, values)

    def _run_bound(self, binding: Any, _keep_alive: Mapping[str, Any]) -> None:
        with self._refusing():
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

    def assignments(self) -> tuple[tuple[str, str], ...]:
        """(execution provider, op type) of each node, as ONNX Runtime partitioned the graph; empty in old versions.

        Partitioning comes before the provider-specific fusions, so these are not yet the nodes that run.
        """
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            return ()
        info = self._session.get_provider_graph_assignment_info()
        return tuple((part.ep_name, node.op_type) for part in info for node in part.get_nodes())

    def end_node_times(self) -> Path:
        """Stop recording and return the JSON file with the events; the caller deletes it."""
        return Path(self._session.end_profiling())

    def _values(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        inputs = {value.name: value.type for value in self._session.get_inputs()}
        if feeds.keys() != inputs.keys():
            raise InputError(
                f"{self._name} takes the inputs {', '.join(inputs) or '(none)'}, but was given "
                f"{', '.join(feeds) or '(none)'}; give a value for each of its inputs and for nothing else."
            )
        with self._refusing():
            return {name: _to_ort(array, inputs[name]) for name, array in feeds.items()}

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            subject = f"ONNX Runtime {ort.__version__} cannot run {self._name}"
            raise refusal(subject, error, "use provider cpu or a lower optimization level") from error


def load_best(spec: SessionSpec) -> tuple[Session, SessionSpec, str | None]:
    """A session at the highest optimization level that works, its spec, and why not at `spec`'s own level, if not.

    ONNX Runtime's optimizers break some valid models, which then load at a lower level only. SessionError, that of
    `spec`'s own level, when none works.
    """
    levels = list(LEVELS)
    refusal: SessionError | None = None
    for level in levels[levels.index(spec.optimization) :]:
        attempt = replace(spec, optimization=level)
        try:
            return Session(attempt), attempt, None if refusal is None else str(refusal)
        except SessionError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def choose_provider(context: Context, provider: str) -> tuple[str, str]:
    """("cuda" or "cpu", why, in a sentence) for the `provider` that a user asked for: "auto", "cuda" or "cpu".

    onnxruntime-gpu names CUDA among its providers on every machine, and where CUDA does not work it quietly makes a CPU
    session. So this makes a session of one node and looks at what it got. SessionError when "cuda" is not there.
    """
    if provider == "cpu":
        return "cpu", "On the CPU, as asked."
    if provider not in ("auto", "cuda"):
        raise InputError(f"Expected the provider to be auto, cuda or cpu, found {provider!r}; choose one of the three.")
    obstacle = cuda_obstacle(context)
    if obstacle is None:
        return "cuda", "On CUDA, as asked." if provider == "cuda" else "On CUDA, because a session really runs there."
    if provider == "auto":
        return "cpu", f"On the CPU, because {obstacle}."
    raise SessionError(
        f"Provider cuda was asked for, but {obstacle}; "
        "run `pip install 'onnx-attention-explorer[cuda]'` on a machine with an NVIDIA GPU, or use provider cpu."
    )


def cuda_obstacle(context: Context) -> str | None:
    """Why no session runs on CUDA here, as a clause ("no NVIDIA GPU was found"); None when one does."""
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        return f"the installed onnxruntime {ort.__version__} is built without CUDA"
    mark = context.log_mark()
    _preload_cuda()
    node = helper.make_node("Identity", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([node], "probe", [x], [y]), ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    try:
        names = list(PROVIDERS.values())
        session = ort.InferenceSession(model.SerializeToString(), providers=names, enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - the provider's own start can fail in as many ways as drivers can
        return f"CUDA does not start: {reason(str(error))}"
    if PROVIDERS["cuda"] in session.get_providers():
        return None
    if gpu.query() is None:
        return "no NVIDIA GPU with a driver was found (nvidia-smi does not answer)"
    missing = _MISSING_LIBRARY.search(context.log_since(mark))
    if missing:
        return f"CUDA's library {missing[1]} is not installed"
    return f"onnxruntime {ort.__version__} could not load its CUDA libraries"


@cache
def _preload_cuda() -> None:
    """Let ONNX Runtime find the CUDA and cuDNN libraries that pip installed."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def load(
    context: Context,
    model: str,
    provider: str = "auto",
    optimization: str = "all",
    data_folder: str | None = None,
) -> dict[str, Any]:
    """Make a session and drop it, or SessionError.

    {"provider", "provider_note", "providers", "load_s", "optimization", "optimization_note"}: with the `optimization`
    "best" the level is the highest that works, and the note says why none above it does.
    """
    return _open(context, SessionSpec(model, provider, data_folder, optimization))[1]


def run(
    context: Context,
    model: str,
    feeds_npz: Sequence[str],
    out_npz: Sequence[str],
    outputs: Sequence[str] | None = None,
    provider: str = "auto",
    optimization: str = "all",
    data_folder: str | None = None,
    sdpa_kernel: int = 0,
    tf32: bool = True,
    until_one_runs: bool = False,
) -> dict[str, Any]:
    """Run a model on the arrays in each file of `feeds_npz`, one session for all, until the first that runs if asked.

    The outputs named (None: all) of a run are written to the file at its place in `out_npz`. Returns what `load` does,
    and in "refusals" for each run that was made [name of an explorer error, its sentence], or null if it ran: an
    InputError when the feeds or output names do not fit, a SessionError when the model does not run on them.
    """
    spec = SessionSpec(model, provider, data_folder, optimization, sdpa_kernel=sdpa_kernel, tf32=tf32)
    session, facts = _open(context, spec)
    refusals: list[tuple[str, str] | None] = []
    for given, out in zip(feeds_npz, out_npz, strict=True):
        context.progress(len(refusals) / len(feeds_npz), "running")
        try:
            arrays.save(out, session.run(arrays.load(given), outputs))
            refusals.append(None)
        except ExplorerError as error:
            refusals.append((type(error).__name__, str(error)))
        if until_one_runs and refusals[-1] is None:
            break
    return {**facts, "refusals": refusals}


def _open(context: Context, spec: SessionSpec) -> tuple[Session, dict[str, Any]]:
    device, note = choose_provider(context, spec.provider)
    spec = replace(spec, provider=device)
    if spec.optimization == "best":
        session, spec, refused = load_best(replace(spec, optimization="all"))
    else:
        session, refused = Session(spec), None
    facts = {
        "provider": device,
        "provider_note": note,
        "providers": list(session.providers),
        "load_s": session.load_s,
        "optimization": spec.optimization,
        "optimization_note": refused or "",
    }
    return session, facts


def _options(spec: SessionSpec) -> ort.SessionOptions:
    if spec.optimization not in LEVELS:
        raise InputError(f"Expected an optimization level among {', '.join(LEVELS)}, found {spec.optimization!r}.")
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[spec.optimization]
    # The threads of an idle session spin for a while: sessions that take turns would steal half of each other's cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if spec.data_folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", spec.data_folder)
    if spec.optimized_model is not None:
        options.optimized_model_filepath = str(spec.optimized_model)
        # Weights in a file of their own: the graph stays small to read, and a protobuf cannot exceed 2 GB.
        weights = f"{spec.optimized_model.name}.data"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if spec.node_times is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(spec.node_times)
    return options


def _to_ort(array: Array, input_type: str) -> Any:
    array = np.asarray(array, order="C")
    if input_type == "tensor(bfloat16)" and array.dtype == np.float32:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(_bfloat16_bits(array), TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _to_numpy(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    shape = value.shape()
    memory = (ctypes.c_uint16 * math.prod(shape)).from_address(value.data_ptr())
    bits = np.frombuffer(memory, np.uint16).reshape(shape)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _bfloat16_bits(array: Array) -> Array:
    """float32 rounded to the nearest bfloat16, ties to even, as the upper half of its bits. NaN stays NaN."""
    bits = array.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)
