"""Writes the sample models.

Every committed sample, in place:   python sample_models/build.py
One of them, in any size:           python sample_models/build.py f5_dit --layers 22 --heads 16 --output big.onnx
"""

import argparse
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from bert import bert
from f5_dit import f5_dit
from gpt import gpt
from onnx import ModelProto

HERE = Path(__file__).parent
BUILDERS: dict[str, Callable[..., ModelProto]] = {"f5_dit": f5_dit, "bert": bert, "gpt": gpt}
small_f5_dit = partial(f5_dit, ffn_mult=1, time_size=8)  # under 600 kB
SAMPLES: dict[str, Callable[[], ModelProto]] = {
    "f5_dit_fp16.onnx": small_f5_dit,
    "f5_dit_fp16_two_casts.onnx": partial(small_f5_dit, softmax_casts="two", value_info=False, opset=17),
    "bert_fp32.onnx": bert,
    "gpt_fp32.onnx": gpt,
}


def save(model: ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString(deterministic=True))
    print(f"{path}: {path.stat().st_size:,} bytes")


def arguments() -> argparse.Namespace:
    """One subcommand per builder, one option per parameter of the builder."""
    parser = argparse.ArgumentParser(description="Write the sample models.")
    commands = parser.add_subparsers(dest="builder", help="build this one; without it, every committed sample")
    for name, builder in BUILDERS.items():
        command = commands.add_parser(name)
        command.add_argument("--output", type=Path, required=True, help="the file to write")
        for parameter, kind in get_type_hints(builder).items():
            if parameter == "return":
                continue
            default = signature(builder).parameters[parameter].default
            flag, about = "--" + parameter.replace("_", "-"), {"default": default, "help": f"default: {default}"}
            if kind is bool:
                command.add_argument(flag, action=argparse.BooleanOptionalAction, **about)
            elif get_origin(kind) is Literal:
                command.add_argument(flag, choices=get_args(kind), **about)
            else:
                command.add_argument(flag, type=int, **about)
    return parser.parse_args()


def main() -> None:
    options = vars(arguments())
    name = options.pop("builder")
    if name is None:
        for file, build in SAMPLES.items():
            save(build(), HERE / file)
    else:
        output = options.pop("output")
        save(BUILDERS[name](**options), output)


if __name__ == "__main__":
    main()
