"""Operations of the engine. Each has one name and several implementations that give the same results.

An operation is one file, `<name>.py`. It holds the public function, which chooses the fastest implementation for the
tensor and the machine, and `reference`, the definition in plain torch. C code lives in `csrc/<name>.c` and is built
into one optional library, which `native.py` loads. Triton kernels live in `<name>_triton.py`, which is imported only
for tensors on a GPU. Tests in `tests/kernels/` compare all implementations with the reference, and
`benchmarks/<name>.py` measures them.
"""
