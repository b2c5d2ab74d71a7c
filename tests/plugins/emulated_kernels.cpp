// kernels.cuh compiled for the CPU, each kernel behind a function that takes its arguments as
// cudaLaunchKernel does. With CSD_HALF also the element types of 16 bits, from CUDA's headers.
#ifdef CSD_HALF
#include "half.h"
#undef __global__
#undef __device__
#undef __shared__
#undef __launch_bounds__
#endif
#include "cuda_emulator.h"

#include <utility>

#include "kernels.cuh"
#include "rounds.cuh"

template <typename... Parameters, size_t... I>
int emulate(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, void** arguments,
            std::index_sequence<I...>) {
  return emulator::run(blocks, threads,
                       [=] { kernel(*static_cast<Parameters*>(arguments[I])...); });
}

template <typename... Parameters>
int emulate(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, void** arguments) {
  return emulate(kernel, blocks, threads, arguments, std::index_sequence_for<Parameters...>());
}

#define EMULATE(kernel)                                                                      \
  extern "C" int emulate_##kernel(unsigned blocks, unsigned threads, void** arguments) {     \
    return emulate(kernel, blocks, threads, arguments);                                      \
  }
#define EMULATE_TYPE(T, type)       \
  CSD_DEFINE_KERNELS(T, type)       \
  EMULATE(csd_accept_##type)        \
  EMULATE(csd_resample_##type)      \
  EMULATE(csd_verify_window_##type) \
  EMULATE(csd_transition_##type)

EMULATE_TYPE(float, float32)
CSD_DEFINE_ROUNDS
EMULATE(csd_head_draft)
EMULATE(csd_head_walk)
extern "C" int64_t size_of_rounds() { return sizeof(CsdRounds); }
#ifdef CSD_HALF
EMULATE_TYPE(__half, float16)
EMULATE_TYPE(__nv_bfloat16, bfloat16)
#endif
