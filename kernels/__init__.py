"""Operations of the engine: one name each, several implementations, the same results.

An operation is one file, `<name>.py`, with the public function, which takes the fastest implementation that the tensor
and the machine allow, and `reference`, its definition in plain torch. C lies in `csrc/<name>.c` and becomes part of one
optional library, which `native.py` finds; a Triton kernel lies in `<name>_triton.py`, and only a tensor on a GPU has it
imported. `tests/test_<name>_op.py` holds the implementations to the reference, `benchmarks/<name>.py` times them.
"""
