"""ONNX Runtime sessions, in the worker process.

`load` and `run` are called through the worker; `Session` is for other code that runs there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import onnxruntime as ort

from explorer.errors import ExplorerError, InputError, SessionError
from explorer.runtime import arrays
from explorer.runtime.arrays import Array
from explorer.runtime.context import Context
from explorer.runtime.ortvalues import to_numpy, to_ort
from explorer.runtime.providers import PROVIDERS, choose_provider
from explorer.runtime.refusals import is_out_of_memory, refusal

LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_GRAPH_ID = "gpu_graph_id"  # of the CUDA graph that a run captures or replays
_NO_GRAPH = -1


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
    cuda_graph      whether what `Session.bind` gives replays a CUDA graph: one launch for all kernels of a run
    """

    model: str
    provider: str
    data_folder: str | None = None
    optimization: str = "all"
    optimized_model: Path | None = None
    node_times: Path | None = None
    sdpa_kernel: int = 0
    tf32: bool = True
    cuda_graph: bool = False


class Session:
    """A loaded model. SessionError when ONNX Runtime refuses it, or does not put it on the provider asked for."""

    def __init__(self, spec: SessionSpec) -> None:
        self._name = Path(spec.model).name
        self._spec = spec
        self._graph_ids = count(1)  # 0 is ONNX Runtime's own
        options = _options(spec)
        names = [PROVIDERS[spec.provider]] if spec.provider == "cpu" else list(PROVIDERS.values())
        settings = [_cuda_options(spec) if name == PROVIDERS["cuda"] else {} for name in names]
        start_s = time.perf_counter()
        with self._refusing("load", "try a lower optimization level"):
            self._session = ort.InferenceSession(
                spec.model, options, providers=names, provider_options=settings, enable_fallback=0
            )
        self.load_s: float = time.perf_counter() - start_s
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
        with self._running():
            options = _run_options(_NO_GRAPH) if self._spec.cuda_graph else None
            results = self._session.run_with_ort_values(computed, values, options) if computed else []
        found = {name: to_numpy(value) for name, value in zip(computed, results, strict=True)}
        # An output that is an input shares its memory, which goes with the input
        return {name: found[name] if name in found else to_numpy(values[name]).copy() for name in wanted}

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], None]:
        """A function that runs the model once and waits until the device is done.

        The inputs are copied to the device here, once, and the outputs stay there: what the function takes is the
        model's own time. It raises as `run` does.

        With CUDA graphs its first call is three runs: one that allocates the outputs, and two in which ONNX Runtime
        allocates everything else and captures the graph; later calls replay it. A session can be bound again, to
        inputs of other shapes, but then the functions it gave before must not be called any more: the graphs share the
        memory between their nodes, and to an older one the newer one's inputs are such memory.
        """
        values = self._values(feeds)
        with self._running():
            binding = self._session.io_binding()
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)  # copies to where the input's consumer runs
            for output in self._session.get_outputs():
                binding.bind_output(output.name, self._spec.provider)
            binding.synchronize_inputs()
        run = partial(self._run_bound, binding, values)
        return self._replayed(binding, run) if self._spec.cuda_graph else partial(run, None)

    def _run_bound(self, binding: Any, _keep_alive: Mapping[str, Any], options: ort.RunOptions | None) -> None:
        with self._running():
            self._session.run_with_iobinding(binding, options)
            binding.synchronize_outputs()

    def _replayed(self, binding: Any, run: Callable[[ort.RunOptions], None]) -> Callable[[], None]:
        graph = _run_options(next(self._graph_ids))
        allocated = False

        def replay() -> None:
            nonlocal allocated
            if not allocated:
                run(_run_options(_NO_GRAPH))
                # A graph writes where it was captured to write: from now on to these very outputs
                for output, value in zip(self._session.get_outputs(), binding.get_outputs(), strict=True):
                    binding.bind_ortvalue_output(output.name, value)
                allocated = True
            run(graph)

        return replay

    def assignments(self) -> tuple[tuple[str, str], ...]:
        """(execution provider, op type) of each node, as ONNX Runtime partitioned the graph; empty in old versions.

        Partitioning comes before the provider-specific fusions, so these are not yet the nodes that run.
        """
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            return ()
        info = self._session.get_provider_graph_assignment_info()
        return tuple((part.ep_name, node.op_type) for part in info for node in part.get_nodes())

    def profiling_start_ns(self) -> int:
        """When recording node times began, on CUPTI's clock; the events' `ts`, in microseconds, count from here."""
        return int(self._session.get_profiling_start_time_ns())

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
        with self._running():
            return {name: to_ort(array, inputs[name]) for name, array in feeds.items()}

    def _running(self) -> AbstractContextManager[None]:
        return self._refusing("run", "use provider cpu or a lower optimization level")

    @contextmanager
    def _refusing(self, verb: str, hint: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            subject = f"ONNX Runtime {ort.__version__} cannot {verb} {self._name}"
            memory = "GPU memory" if self._spec.provider == "cuda" else "memory"
            raise refusal(subject, error, hint, memory) from error


def load_best(spec: SessionSpec) -> tuple[Session, SessionSpec, str | None]:
    """A session at the highest optimization level that works, its spec, and why not at `spec`'s own level, if not.

    ONNX Runtime's optimizers break some valid models, which then load at a lower level only. SessionError, that of
    `spec`'s own level, when none works; where memory runs out no lower one is tried.
    """
    levels = list(LEVELS)
    reason: str | None = None  # words alone: the error's traceback would hold on to what was loaded
    for level in levels[levels.index(spec.optimization) :]:
        attempt = replace(spec, optimization=level)
        try:
            return Session(attempt), attempt, reason
        except SessionError as error:
            reason = reason or str(error)
            if is_out_of_memory(str(error)):
                break
    assert reason is not None
    raise SessionError(reason)


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
    if spec.cuda_graph and spec.provider != "cuda":
        raise SessionError(
            f"{spec.model} was to run with CUDA graphs, but on the CPU; use provider cuda, or leave them out."
        )
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


def _cuda_options(spec: SessionSpec) -> dict[str, str]:
    options = {"use_tf32": str(int(spec.tf32)), "sdpa_kernel": str(spec.sdpa_kernel)}
    return options | {"enable_cuda_graph": "1"} if spec.cuda_graph else options


def _run_options(graph_id: int) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry(_GRAPH_ID, str(graph_id))
    return options
