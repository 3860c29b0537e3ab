"""The torch.nn modules that more than one sample uses, each as the exporter spells it."""

import math

from tape import Value


def linear(x: Value, name: str, width: int, gain: float = 1.0) -> Value:
    """Unit-variance input gives an output of standard deviation `gain`, plus a tenth of that as bias."""
    fan_in = x.shape[-1]
    with x.tape.scope(name):
        weight = x.tape.weight("weight", (fan_in, width), std=gain / math.sqrt(fan_in))
        bias = x.tape.weight("bias", (width,), std=gain / 10)
        if len(x.shape) == 2:
            return x.tape.op("Gemm", x, weight, bias, shape=(x.shape[0], width))
        return bias + x @ weight


def layer_norm(x: Value, name: str, epsilon: float) -> Value:
    with x.tape.scope(name):
        weight = x.tape.weight("weight", x.shape[-1:], std=0.1, mean=1.0)
        bias = x.tape.weight("bias", x.shape[-1:], std=0.1)
        return x.tape.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon)


def gelu_tanh(x: Value) -> Value:
    """One operator since opset 20, spelled out before."""
    if x.tape.opset >= 20:
        return x.tape.op("Gelu", x, approximate="tanh")
    with x.tape.scope("act"):
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * (x.tape.op("Tanh", inner) + 1.0) * 0.5


def gelu_erf(x: Value) -> Value:
    with x.tape.scope("act"):
        return x * (x.tape.op("Erf", x / math.sqrt(2)) + 1.0) * 0.5
