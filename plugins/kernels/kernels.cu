// The kernels for every element type, and their launch functions.
#include "kernels.cuh"
#include "rounds.cuh"

#include <cuda_runtime.h>

#include "half.h"
#include "launch.h"

CSD_DEFINE_KERNELS(float, float32)
CSD_DEFINE_KERNELS(__half, float16)
CSD_DEFINE_KERNELS(__nv_bfloat16, bfloat16)
CSD_DEFINE_ROUNDS

namespace csd {
namespace {

template <typename T>
struct Kernels;

#define CSD_NAME_KERNELS(T, type)                                    \
  template <>                                                        \
  struct Kernels<T> {                                                \
    static constexpr auto accept = &csd_accept_##type;               \
    static constexpr auto resample = &csd_resample_##type;           \
    static constexpr auto verify_window = &csd_verify_window_##type; \
    static constexpr auto transition = &csd_transition_##type;       \
  };
CSD_NAME_KERNELS(float, float32)
CSD_NAME_KERNELS(__half, float16)
CSD_NAME_KERNELS(__nv_bfloat16, bfloat16)

// Call `run` with a value of the element type.
template <typename Run>
cudaError_t with_type(DataType type, const Run& run) {
  switch (type) {
    case DataType::float32: return run(float());
    case DataType::float16: return run(__half());
    case DataType::bfloat16: return run(__nv_bfloat16());
  }
  return cudaErrorInvalidValue;
}

constexpr int64_t kMostBlocks = 1 << 16;  // beyond that the kernels stride

int64_t blocks_for(int64_t tokens, int32_t lanes) {
  const int64_t per_block = kThreads / lanes;
  return (tokens + per_block - 1) / per_block;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, cudaStream_t stream,
                   Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace

cudaError_t launch_accept(const AcceptParams& a, DataType type, cudaStream_t stream) {
  if (a.batch < 0 || a.tokens < 0 || a.channels < 1 || !(a.inner_temperature > 0))
    return cudaErrorInvalidValue;
  if (a.batch == 0) return cudaSuccess;
  return with_type(type, [&](auto element) {
    using T = decltype(element);
    auto in = [](const void* array) { return static_cast<const T*>(array); };
    return launch(Kernels<T>::accept, a.batch, stream, in(a.x), in(a.mean_p), in(a.std_p),
                  in(a.sum_log_std_p), in(a.mean_q), in(a.std_q), in(a.sum_log_std_q), a.u, a.batch,
                  a.tokens, a.channels, static_cast<int32_t>(a.kind), a.inner_temperature,
                  a.accepted, a.log_ratio, a.prefix, a.error);
  });
}

cudaError_t launch_resample(const ResampleParams& a, DataType type, cudaStream_t stream) {
  if (a.tries < 0 || a.tokens < 0 || a.channels < 1) return cudaErrorInvalidValue;
  if (a.tokens == 0) return cudaSuccess;
  return with_type(type, [&](auto element) {
    using T = decltype(element);
    auto in = [](const void* array) { return static_cast<const T*>(array); };
    return launch(Kernels<T>::resample, blocks_for(a.tokens, lanes_for(a.channels)), stream,
                  in(a.mean_p), in(a.std_p), in(a.sum_log_std_p), in(a.mean_q), in(a.std_q),
                  in(a.sum_log_std_q), a.normals, a.uniforms, a.tries, a.tokens, a.channels,
                  static_cast<int32_t>(a.kind), static_cast<T*>(a.x), a.done, a.error);
  });
}

cudaError_t launch_verify_window(const VerifyWindowParams& a, DataType type, cudaStream_t stream) {
  if (a.tokens < 0 || a.window < 0 || a.channels < 1 || a.tries < 0) return cudaErrorInvalidValue;
  if (a.tokens == 0) return cudaSuccess;
  return with_type(type, [&](auto element) {
    using T = decltype(element);
    auto in = [](const void* array) { return static_cast<const T*>(array); };
    return launch(Kernels<T>::verify_window, blocks_for(a.tokens, kWarp), stream, in(a.proposed),
                  in(a.mean_p), in(a.std_p), in(a.mean_q), in(a.std_q), a.uniforms, a.index,
                  a.pool_normals, a.pool_uniforms, a.tokens, a.window, a.channels, a.tries,
                  a.accepted, a.next_index, static_cast<T*>(a.state), a.status);
  });
}

cudaError_t launch_transition(const TransitionParams& a, DataType type, cudaStream_t stream) {
  if (a.rows < 0 || a.channels < 1 || a.steps < 0 || !a.eps_uncond != !a.scale)
    return cudaErrorInvalidValue;
  if (a.rows == 0) return cudaSuccess;
  return with_type(type, [&](auto element) {
    using T = decltype(element);
    auto in = [](const void* array) { return static_cast<const T*>(array); };
    return launch(Kernels<T>::transition, blocks_for(a.rows, lanes_for(a.channels)), stream,
                  in(a.x), in(a.eps), in(a.v), in(a.eps_uncond), a.scale, a.noise, a.step, a.tables,
                  a.rows, a.channels, a.steps, a.temperature, static_cast<T*>(a.next), a.mean,
                  a.log_std, a.x0hat);
  });
}

}  // namespace csd
