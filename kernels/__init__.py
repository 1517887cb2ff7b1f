"""Operations of the engine. Each has one name and several implementations that give the same results.

An operation is one file: the public function, which chooses the fastest implementation for the tensor and the machine,
and `reference`, the definition in plain torch, with which `tests/kernels/` compare the others. C code lives in
`csrc/<name>.c`, in one optional library (`native.py`), Triton kernels in `<name>_triton.py`.
"""
