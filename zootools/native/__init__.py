"""Native lanes: one SIMD lane is one model.

The C++ in this folder trains as many models side by side as the processor's vectors have lanes, each with its own
images, weights and hyper-parameters. `vec.h` is the arithmetic, `layers.h` the two kinds of layer, `network.h` the
whole network, its optimizers and the plain C interface. `compiler` specialises it for a layer schema with the
system's compiler; `kernel` loads the result.
"""
