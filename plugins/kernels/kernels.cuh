// The operators as CUDA kernels: what loops over tokens and says which lanes share one.
//
// Every kernel strides over its grid, so any number of blocks computes the same; launch.h and
// csd/plugins/launch.py choose it. Arguments are inputs, sizes and attributes of 32 bits, outputs:
// the order that TensorRT's ahead-of-time Python plugins pass them in.
#pragma once

#include "token_ops.h"

namespace csd {

constexpr int kThreads = 128;  // of a block
constexpr int kWarp = 32;

// `count` neighbouring lanes of a warp, a power of two.
struct LaneGroup {
  unsigned mask;
  int32_t count, own;

  __device__ int32_t lane() const { return own; }
  __device__ int32_t lanes() const { return count; }
  // A butterfly: each lane adds the same pairs, so all get the same bits.
  __device__ float sum(float value) const {
    for (int32_t distance = count / 2; distance > 0; distance /= 2)
      value += __shfl_xor_sync(mask, value, distance);
    return value;
  }
  __device__ bool all(bool value) const { return __all_sync(mask, value) != 0; }
};

// The group of this thread, one of `per_block` in each block.
struct Place {
  LaneGroup group;
  int32_t index, per_block;

  __device__ int64_t first() const { return int64_t(blockIdx.x) * per_block + index; }
  __device__ int64_t stride() const { return int64_t(gridDim.x) * per_block; }
};

__device__ inline Place place_of_thread(int32_t lanes) {
  const int32_t own = int32_t(threadIdx.x) % lanes, start = int32_t(threadIdx.x) % kWarp - own;
  const unsigned mask = lanes == kWarp ? ~0u : ((1u << lanes) - 1) << start;
  return {{mask, lanes, own}, int32_t(threadIdx.x) / lanes, int32_t(blockDim.x) / lanes};
}

// The smallest power of two that holds the channels, at most a warp.
CSD_HD int32_t lanes_for(int32_t channels) {
  int32_t lanes = 1;
  while (lanes < channels && lanes < kWarp) lanes *= 2;
  return lanes;
}

// Blocks stride over rows, and the groups of a block over its tokens.
template <typename T>
__device__ void accept_rows(const T* x, const TokenDensity<T>& p, const TokenDensity<T>& q,
                            const float* u, int32_t batch, int32_t tokens, int32_t channels,
                            int32_t kind, float inner_temperature, uint8_t* accepted,
                            float* log_ratio, int32_t* prefix, int32_t* error) {
  __shared__ int32_t first_rejected, wrong;
  const Place place = place_of_thread(lanes_for(channels));
  const float inverse_temperature = 1.0f / inner_temperature;
  for (int64_t row = blockIdx.x; row < batch; row += gridDim.x) {
    if (threadIdx.x == 0) {
      first_rejected = tokens;
      wrong = 0;
    }
    __syncthreads();
    for (int32_t k = place.index; k < tokens; k += place.per_block) {
      const int64_t token = row * tokens + k, at = token * channels;
      const Verdict verdict = accept_token(place.group, channels, x + at, p.at(at), q.at(at),
                                           u[token], kind, inverse_temperature);
      if (place.group.lane() != 0) continue;
      accepted[token] = verdict.accepted;
      log_ratio[token] = verdict.log_ratio;
      if (!verdict.accepted) atomicMin(&first_rejected, k);
      if (verdict.error) atomicMax(&wrong, 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      prefix[row] = first_rejected;
      error[row] = wrong;
    }
  }
}

__device__ inline TokenPool pool_of(const float* normals, const float* uniforms, int32_t tries,
                                    int32_t tokens, int32_t channels, int64_t token) {
  return {normals + token * channels, uniforms + token, int64_t(tokens) * channels, tokens, tries};
}

template <typename T>
__device__ void resample_tokens(const TokenDensity<T>& p, const TokenDensity<T>& q,
                                const float* normals, const float* uniforms, int32_t tries,
                                int32_t tokens, int32_t channels, int32_t kind, T* x,
                                uint8_t* done, int32_t* error) {
  const Place place = place_of_thread(lanes_for(channels));
  for (int64_t n = place.first(); n < tokens; n += place.stride()) {
    const int64_t at = n * channels;
    const Resampled result =
        resample_token(place.group, channels, p.at(at), q.at(at), kind,
                       pool_of(normals, uniforms, tries, tokens, channels, n), x + at);
    if (place.group.lane() != 0) continue;
    done[n] = result.done;
    error[n] = result.error;
  }
}

// A whole warp has each token, however few its channels are: walks differ in length, and warps of
// their own keep them from waiting for each other.
template <typename T>
__device__ void verify_windows(const TokenWindow<T>& all, const int32_t* index,
                               const float* pool_normals, const float* pool_uniforms,
                               int32_t tokens, int32_t channels, int32_t tries, int32_t* accepted,
                               int32_t* next_index, T* state, int32_t* status) {
  const Place place = place_of_thread(kWarp);
  for (int64_t n = place.first(); n < tokens; n += place.stride()) {
    const int64_t at = n * all.length * channels;
    const TokenWindow<T> window = {all.proposed + at, all.mean_p + at, all.std_p + at,
                                   all.mean_q + at,   all.std_q + at,  all.uniforms + n * all.length,
                                   all.length};
    const Walk walk = verify_window_token(
        place.group, channels, index[n], window,
        pool_of(pool_normals, pool_uniforms, tries, tokens, channels, n), state + n * channels);
    if (place.group.lane() != 0) continue;
    accepted[n] = walk.accepted;
    next_index[n] = walk.next_index;
    status[n] = walk.status;
  }
}

template <typename T>
__device__ void transition_rows(const TransitionRow<T>& all, const float* scale,
                                const int32_t* step, const float* tables, int32_t rows,
                                int32_t channels, int32_t steps, float temperature,
                                const MovedRow<T>& out) {
  const Place place = place_of_thread(lanes_for(channels));
  for (int64_t r = place.first(); r < rows; r += place.stride()) {
    const int64_t at = r * channels;
    const int32_t i = step[r];
    const TransitionRow<T> in = {all.x + at, all.eps + at,
                                 all.eps_uncond ? all.eps_uncond + at : nullptr, all.v + at,
                                 all.noise + at};
    transition_token(place.group, channels, i < 0 || i >= steps ? nullptr : tables + 6 * i, i,
                     all.eps_uncond ? scale[r] : 1.0f, temperature, in,
                     MovedRow<T>{out.next + at, out.mean + at, out.log_std + at, out.x0hat + at});
  }
}

}  // namespace csd

// The entry points of one element type, under names that a cubin or PTX can be asked for.
#define CSD_DEFINE_KERNELS(T, type)                                                               \
  extern "C" __global__ void __launch_bounds__(csd::kThreads) csd_accept_##type(                  \
      const T* __restrict__ x, const T* __restrict__ mean_p, const T* __restrict__ std_p,         \
      const T* __restrict__ sum_log_std_p, const T* __restrict__ mean_q,                          \
      const T* __restrict__ std_q, const T* __restrict__ sum_log_std_q,                           \
      const float* __restrict__ u, int32_t batch, int32_t tokens, int32_t channels, int32_t kind, \
      float inner_temperature, uint8_t* __restrict__ accepted, float* __restrict__ log_ratio,     \
      int32_t* __restrict__ prefix, int32_t* __restrict__ error) {                                \
    csd::accept_rows<T>(x, {mean_p, std_p, sum_log_std_p}, {mean_q, std_q, sum_log_std_q}, u,     \
                        batch, tokens, channels, kind, inner_temperature, accepted, log_ratio,    \
                        prefix, error);                                                           \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(csd::kThreads) csd_resample_##type(                \
      const T* __restrict__ mean_p, const T* __restrict__ std_p,                                  \
      const T* __restrict__ sum_log_std_p, const T* __restrict__ mean_q,                          \
      const T* __restrict__ std_q, const T* __restrict__ sum_log_std_q,                           \
      const float* __restrict__ normals, const float* __restrict__ uniforms, int32_t tries,       \
      int32_t tokens, int32_t channels, int32_t kind, T* __restrict__ x,                          \
      uint8_t* __restrict__ done, int32_t* __restrict__ error) {                                  \
    csd::resample_tokens<T>({mean_p, std_p, sum_log_std_p}, {mean_q, std_q, sum_log_std_q},       \
                            normals, uniforms, tries, tokens, channels, kind, x, done, error);    \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(csd::kThreads) csd_verify_window_##type(           \
      const T* __restrict__ proposed, const T* __restrict__ mean_p, const T* __restrict__ std_p,  \
      const T* __restrict__ mean_q, const T* __restrict__ std_q,                                  \
      const float* __restrict__ uniforms, const int32_t* __restrict__ index,                      \
      const float* __restrict__ pool_normals, const float* __restrict__ pool_uniforms,            \
      int32_t tokens, int32_t window, int32_t channels, int32_t tries,                            \
      int32_t* __restrict__ accepted, int32_t* __restrict__ next_index, T* __restrict__ state,    \
      int32_t* __restrict__ status) {                                                             \
    csd::verify_windows<T>({proposed, mean_p, std_p, mean_q, std_q, uniforms, window}, index,     \
                           pool_normals, pool_uniforms, tokens, channels, tries, accepted,        \
                           next_index, state, status);                                            \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(csd::kThreads) csd_transition_##type(              \
      const T* __restrict__ x, const T* __restrict__ eps, const T* __restrict__ v,                \
      const T* __restrict__ eps_uncond, const float* __restrict__ scale,                          \
      const float* __restrict__ noise, const int32_t* __restrict__ step,                          \
      const float* __restrict__ tables, int32_t rows, int32_t channels, int32_t steps,            \
      float temperature, T* __restrict__ next, float* __restrict__ mean,                          \
      float* __restrict__ log_std, float* __restrict__ x0hat) {                                   \
    csd::transition_rows<T>({x, eps, eps_uncond, v, noise}, scale, step, tables, rows, channels,  \
                            steps, temperature, {next, mean, log_std, x0hat});                    \
  }
