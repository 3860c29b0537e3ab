"""The names of CUDA kernels: from what the compiler made of them to what a person reads."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import cache

LONGEST = 96
"""Characters of a shortened name; what is longer ends in "…"."""

_NAMESPACE = re.compile(r"\(anonymous namespace\)::|\b\w+::")
_CUTLASS_WRAPPER = re.compile(r"Kernel2?<(.+)>")  # the template argument is the kernel's real name
_LITERAL = re.compile(r"-?\d+\w*|true|false|\(.*")


def demangler() -> Callable[[str], str]:
    """A function that turns the compiler's names into C++ ("_ZN8cublasLt…" into "cublasLt::…").

    It leaves alone what is none of them, and everything where there is no C++ runtime of GCC to ask.
    """
    try:
        demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
        free = ctypes.CDLL(None).free
    except (OSError, AttributeError, TypeError):  # CDLL(None) is no library on Windows
        return str
    demangle.restype = ctypes.c_void_p
    demangle.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]
    free.argtypes = [ctypes.c_void_p]

    @cache
    def readable(name: str) -> str:
        if not name.startswith("_Z"):
            return name
        address = demangle(name.encode(), None, None, ctypes.byref(ctypes.c_int()))
        if not address:
            return name
        text = ctypes.string_at(address).decode(errors="replace")
        free(address)
        return text

    return readable


@cache
def shorten(name: str) -> str:
    """A kernel's demangled `name` without namespaces, parameters and numbers: "_UnaryElementWise<half, OP_Neg>".

    Of the template arguments each word is kept once.
    """
    function, arguments = _split(_NAMESPACE.sub("", name))
    function = function.rpartition(" ")[2]  # before it stands what the function returns
    wrapped = _CUTLASS_WRAPPER.fullmatch(f"{function}<{', '.join(arguments)}>")
    if wrapped is not None and len(arguments) == 1:
        return _cut(wrapped[1])
    words = dict.fromkeys(_word(argument) for argument in arguments if not _LITERAL.fullmatch(argument))
    return _cut(f"{function}<{', '.join(words)}>" if words else function)


def _split(name: str) -> tuple[str, list[str]]:
    """The function's name before its template arguments and parameters, and the outermost of these arguments."""
    depth, start = 0, 0
    head, arguments = "", []
    for at, sign in enumerate(name):
        if sign == "<":
            depth += 1
            if depth == 1:
                head, start = name[:at], at + 1
        elif depth == 1 and sign in ",>":
            arguments.append(name[start:at].strip())
            start = at + 1
        if sign == ">":
            depth -= 1
            if depth == 0:
                return head, arguments
        elif sign == "(" and depth == 0:
            return name[:at], []
    return name, []


def _word(argument: str) -> str:
    """A template argument without its own arguments, and with the field's name of a number's type."""
    return argument.partition("<")[0].removeprefix("__").removeprefix("nv_").removesuffix("_t")


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
