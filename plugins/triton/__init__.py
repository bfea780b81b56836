"""Kernels of this project's operators in the Triton language, and their plugins for TensorRT.

| module | what |
|---|---|
| parts, threshold, keys, evict, attention, experts | the kernels |
| plugin | what a TensorRT plugin is: names, shapes, and its launch |
| attention_plugins, expert_plugins, table | the plugins |
| bodies | ONNX functions: an operator as a chain of plugins |
| ptx | a launch compiled and made fit for TensorRT |
| register | the plugins in TensorRT's registry |

TensorRT takes one kernel per plugin, without scratch memory, so an operator is a chain of them, and what one
leaves for the next is a tensor of the network. docs/lab/2026-11-26-triton.md has the plugins' table.
"""

__all__: list[str] = []
