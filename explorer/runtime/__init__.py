"""The worker process, and everything in this project that touches ONNX Runtime.

    client    the parent's side: start, call, cancel and kill the worker
    protocol  the messages between the two
    worker    the child's main loop
    context   what a function called in the child is given
    sessions  the child's ONNX Runtime sessions (the only module that imports onnxruntime)
    environment  the child's answer to "what is this machine?"
    arrays    how tensors travel: in files

Sessions crash, hang, and exhaust memory; in a process of their own that is a message, not a dead notebook. Nothing the
parent imports from here imports onnxruntime.
"""

from explorer.runtime.client import Worker

__all__ = ["Worker"]
