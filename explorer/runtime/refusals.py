"""ONNX Runtime's error messages, made into one sentence that a person can act on."""

from __future__ import annotations

import re

from explorer.errors import ExplorerError, InputError, SessionError
from explorer.runtime.memory import in_words

_STATUS = re.compile(
    r"^(?:\[ONNXRuntimeError\] : \d+ : \w+ : |Error in execution: )?(?:Load model from .*? failed:)?(?:Fatal error: )?"
)
# "/src/graph.cc:46 void ns::Function(const std::map<std::basic_string<char>, int>&, bool) const [with T = int] "
_SIGNATURE = re.compile(r"\S+\.(?:h|cc|cpp|cuh?):\d+ .*?\((?:[^()]|\([^()]*\))*\)(?: const)?(?: \[with [^\]]*\])? ")
_NESTED = re.compile(r"(?<=': )\[ONNXRuntimeError\] : \d+ : \w+ : ")  # a node's own status behind its name
_PLACE = re.compile(r"\S+\.(?:h|cc|cpp|cuh?):\d+ \w+ ")  # "tensorprotoutils.cc:461 Function "
_DETAILS = re.compile(r"\s*;\s*GPU=\d+.*", re.DOTALL)  # a CUDA failure goes on with host name, file and expression
# Not before the second part of "… initializer: w. Error: … does not exist" and "Load … failed. File doesn't exist".
# Nor before the sizes of "… cannot be reshaped to the requested shape. Input shape: …".
_SENTENCE_END = re.compile(r"(?<=[\w)\"'])\. (?=[A-Z])(?!Error|File|Input shape)")
_AT_NODE = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)' Status Message: ")
_ASSERTION = re.compile(r"(?<=': )[^:'{}]*? was false\. ")  # behind the node's name: "axis == largest was false. "
# A paragraph on what is *guaranteed*, with the point in the middle of it.
_OPSET = re.compile(r"Opset (\d+) is under development.* support for domain (\S+) is till opset (\d+)", re.DOTALL)

_OUT_OF_MEMORY = re.compile(
    r"Available memory of (?P<free>\d+) is smaller than requested bytes of (?P<wanted>\d+)"  # its arena has a limit
    r"|Failed to allocate memory for requested buffer of size (?P<size>\d+)"  # its arena cannot grow
    r"|[Oo]ut of (?:GPU )?memory|OUT_OF_MEMORY|cudaErrorMemoryAllocation|_ALLOC(?:ATION)?_FAILED"  # CUDA, cuBLAS, cuDNN
    r"|(?:[Ff]ailed|[Uu]nable) to allocate|[Mm]emory allocation failed|bad[_ ]alloc"
)
_INPUTS = re.compile(r"Got invalid dimensions|Unexpected input data type|Invalid rank for input")
_HINTS = (
    (_OUT_OF_MEMORY.pattern, "use a smaller batch or sequence, or free memory"),
    (r"is not a registered function/op|No Op registered", "replace that operator or export the model without it"),
    (r"is till opset", "convert the model to an opset that is supported"),
    (r"IR version", "save the model again with an older version of onnx"),
    (r"[Ee]xternal data|external initializer", "put the file with the weights where the model expects it"),
    (
        r"[Pp]rotobuf parsing failed|No graph was found|File doesn't exist",
        "check that the path leads to a complete model",
    ),
    (r"Type Error|Invalid model|ShapeInferenceError|not a graph input", "repair the model or export it again"),
    (r"NOT_IMPLEMENTED|Could not find an implementation", "use a data type that this provider has a kernel for"),
    # Outputs are bound to memory beforehand for CUDA graphs alone
    (r"[Gg]raph capture|is capturing|during capture|pre-allocated output", "run it without CUDA graphs"),
    (
        r"while running .*(?:bounds|[Bb]roadcast|[Ss]hape|[Dd]imension)",
        "give shapes that the model is made for (--shape), or inputs of your own (--inputs)",
    ),
)


def reason(message: str, memory: str = "memory") -> str:
    """The core of a message: its first sentence, without status codes, source positions and C++ signatures.

    `memory`: what to call the memory that has run out, if that is the reason ("GPU memory").
    """
    if opset := _OPSET.search(message):
        found, domain, latest = opset.groups()
        return f"it knows the opsets of {domain} up to {latest}, and the model needs {found}"
    if shortage := _OUT_OF_MEMORY.search(message):
        return _shortage(shortage, _AT_NODE.search(message), memory)
    text = _STATUS.sub("", message)
    for noise in (_DETAILS, _SIGNATURE, _PLACE):
        text = noise.sub("", text)
    text = _NESTED.sub("", _AT_NODE.sub(r"\1 node '\2': ", " ".join(text.split())))
    text = _ASSERTION.sub("", text) or "it gives no reason"
    return _SENTENCE_END.split(text)[0].rstrip(".")


def refusal(subject: str, error: Exception, fallback_hint: str, memory: str = "memory") -> ExplorerError:
    """`subject` ("ONNX Runtime cannot load m.onnx"), ONNX Runtime's reason, and what to do, as one sentence.

    An InputError when the reason is that inputs do not fit, otherwise a SessionError. `memory` as for `reason`.
    """
    message = str(error)
    if _INPUTS.search(message):
        return InputError(f"{subject}: {reason(message)}; give inputs with the model's own names, types and shapes.")
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, message, re.DOTALL)), fallback_hint)
    return SessionError(f"{subject}: {reason(message, memory)}; {hint}.")


def is_out_of_memory(text: str) -> bool:
    """Whether a message, a log or a refusal of ours tells of memory that could not be had, on whichever device."""
    return _OUT_OF_MEMORY.search(text) is not None


def _shortage(found: re.Match[str], node: re.Match[str] | None, memory: str) -> str:
    where = "it" if node is None else f"{node[1]} node '{node[2]}'"
    what = "memory" if "bad" in found[0] else memory  # C++'s own exception is about the host's
    text = f"{where} ran out of {what}"
    if wanted := found["wanted"] or found["size"]:
        text += f", wanting {in_words(int(wanted))} more"
    return text + (f" when {in_words(int(found['free']))} were free" if found["free"] else "")
