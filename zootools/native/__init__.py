"""The native kernel: C++ that trains one model per SIMD lane.

It trains as many models side by side as the processor's vectors have lanes, each with its own images, weights and
hyper-parameters. `vec.h` is the arithmetic, `layers.h` has the two kinds of layer, `network.h` the network, its
optimizers and the C interface. `compiler` specialises the kernel for a layer schema with the system's compiler;
`kernel` loads and calls it.
"""
