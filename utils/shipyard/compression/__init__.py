"""Model in, smaller model out; each way has a module of its own.

`measure` says what a network costs, `pruning` takes weights and channels out, `distillation`
trains a small network on the answers of a large one, `low_rank` factors matrices, and
`quantization` stores numbers in few bits.
"""
