"""The worker process, and everything in this project that touches ONNX Runtime.

    client       the parent's side: start, call, cancel and kill the worker
    protocol     the messages between the two
    worker       the child's main loop
    context      what a function called in the child is given
    sessions     the child's ONNX Runtime sessions
    providers    whether they run on CUDA or on the CPU
    ortvalues    what goes into them and comes out
    refusals     why they do not load or run, in words
    environment  the child's answer to "what is this machine?"
    gpu          the GPU that CUDA uses, and the state that it is in
    memory       how much of the machine's memory a process uses
    arrays       how tensors travel: in files
    deadline     one time limit for several calls

Sessions crash, hang, and exhaust memory; in a process of their own that is a message, not a dead notebook. Nothing the
parent imports from here imports onnxruntime or initialises CUDA.
"""

from explorer.runtime.client import Worker
from explorer.runtime.deadline import Deadline

__all__ = ["Deadline", "Worker"]
