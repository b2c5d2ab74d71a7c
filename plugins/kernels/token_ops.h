// The operators on one token, in float32, by a group of lanes that share its channels.
//
// On a device a group is a warp or a part of one (kernels.cuh). `Group` offers `lane()`, `lanes()`,
// `sum(float)` and `all(bool)`; every lane gets the same sum, so that no two lanes disagree about a
// verdict. `Element<T>` converts between memory and float.
#pragma once

#include "csd_ops.h"

// Before a loop over channels: a lane has one or two of them, and unrolled code is four times the
// size.
#if defined(__CUDACC__)
#define CSD_ROLLED _Pragma("unroll 1")
#else
#define CSD_ROLLED
#endif

namespace csd {

template <typename T>
struct Element;

template <>
struct Element<float> {
  CSD_HD static float load(float value) { return value; }
  CSD_HD static float store(float value) { return value; }
};

template <typename T>
CSD_HD float load(const T* array, int64_t at) {
  return Element<T>::load(array[at]);
}

// One token of the arrays that a density is made of.
template <typename T>
struct TokenDensity {
  const T *mean, *std, *sum_log_std;

  CSD_HD TokenDensity at(int64_t offset) const {
    return {mean + offset, std + offset, sum_log_std + offset};
  }
};

// One token's tries: try k has normals[k * normal_stride + c] and uniforms[k * uniform_stride].
struct TokenPool {
  const float *normals, *uniforms;
  int64_t normal_stride, uniform_stride;
  int32_t tries;
};

CSD_HD float sigma_sign(int32_t kind) { return kind == 0 ? 1.0f : -1.0f; }

struct Verdict {
  float log_ratio;
  bool accepted, error;
};

template <typename T, typename Group>
CSD_HD Verdict accept_token(const Group& group, int32_t channels, const T* x,
                            const TokenDensity<T>& p, const TokenDensity<T>& q, float u,
                            int32_t kind, float inverse_temperature) {
  const float sign = sigma_sign(kind);
  float ratio = 0;
  bool finite = is_finite(u);
  CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes()) {
    const float value = load(x, c), mean_p = load(p.mean, c), std_p = load(p.std, c),
                mean_q = load(q.mean, c), std_q = load(q.std, c),
                sum_p = load(p.sum_log_std, c), sum_q = load(q.sum_log_std, c);
    finite &= is_finite(value) && is_finite(mean_p) && is_finite(std_p) && is_finite(mean_q) &&
              is_finite(std_q) && is_finite(sum_p) && is_finite(sum_q);
    ratio += log_ratio_channel(value, mean_p, std_p, mean_q, std_q, inverse_temperature) +
             sign * (sum_q - sum_p);
  }
  ratio = group.sum(ratio);
  const bool error = !group.all(finite) || ratio != ratio;
  // A ratio that is not a number compares false.
  return {ratio, real_log(u) < (ratio > 0 ? 0.0f : ratio), error};
}

// The first try of the pool that the residual keeps, or -1.
template <typename T, typename Group>
CSD_HD int32_t first_kept(const Group& group, int32_t channels, const T* mean_p, const T* std_p,
                          const T* mean_q, const T* std_q, float log_sigma, const TokenPool& pool) {
  for (int32_t k = 0; k < pool.tries; ++k) {
    const float* normals = pool.normals + k * pool.normal_stride;
    float ratio = 0;
    CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes())
      ratio += residual_log_ratio_channel(normals[c], load(mean_p, c), load(std_p, c),
                                          load(mean_q, c), load(std_q, c));
    ratio = log_sigma + group.sum(ratio);
    if (pool.uniforms[k * pool.uniform_stride] < residual_keep(ratio)) return k;
  }
  return -1;
}

template <typename T, typename Group>
CSD_HD void store_try(const Group& group, int32_t channels, const T* mean, const T* std,
                      const TokenPool& pool, int32_t k, T* out) {
  const float* normals = pool.normals + k * pool.normal_stride;
  CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes())
    out[c] = Element<T>::store(load(mean, c) + load(std, c) * normals[c]);
}

template <typename T, typename Group>
CSD_HD void store_everywhere(const Group& group, int32_t channels, float value, T* out) {
  CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes())
    out[c] = Element<T>::store(value);
}

struct Resampled {
  bool done, error;
};

template <typename T, typename Group>
CSD_HD Resampled resample_token(const Group& group, int32_t channels, const TokenDensity<T>& p,
                                const TokenDensity<T>& q, int32_t kind, const TokenPool& pool,
                                T* x) {
  float log_sigma = 0;
  bool finite = true;
  CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes()) {
    const float sum_p = load(p.sum_log_std, c), sum_q = load(q.sum_log_std, c);
    finite &= is_finite(load(p.mean, c)) && is_finite(load(p.std, c)) && is_finite(sum_p) &&
              is_finite(load(q.mean, c)) && is_finite(load(q.std, c)) && is_finite(sum_q);
    log_sigma += sum_q - sum_p;
  }
  log_sigma = sigma_sign(kind) * group.sum(log_sigma);
  finite = group.all(finite);
  const int32_t kept =
      finite ? first_kept(group, channels, p.mean, p.std, q.mean, q.std, log_sigma, pool) : -1;
  // As in the reference, the first try stands where none is kept.
  if (pool.tries > 0)
    store_try(group, channels, p.mean, p.std, pool, kept < 0 ? 0 : kept, x);
  else
    store_everywhere(group, channels, NAN, x);
  return {kept >= 0, !finite};
}

// One token's window, [K, C] each.
template <typename T>
struct TokenWindow {
  const T *proposed, *mean_p, *std_p, *mean_q, *std_q;
  const float* uniforms;  // [K]
  int32_t length;
};

struct Walk {
  int32_t accepted, next_index, status;  // status: WindowStatus of launch.h
};

template <typename T, typename Group>
CSD_HD Walk verify_window_token(const Group& group, int32_t channels, int32_t index,
                                const TokenWindow<T>& window, const TokenPool& pool, T* state) {
  if (index < 0 || window.length == 0) {
    store_everywhere(group, channels, 0.0f, state);
    return {0, index < 0 ? -1 : index, 0};
  }
  const T* emitted = window.proposed;
  int32_t accepted = 0;
  while (accepted < window.length) {
    const int32_t i = index - accepted;
    const int64_t at = static_cast<int64_t>(accepted) * channels;
    const T *mean_p = window.mean_p + at, *std_p = window.std_p + at,
            *mean_q = window.mean_q + at, *std_q = window.std_q + at,
            *proposed = window.proposed + at;
    // At head step 0 there is nothing to accept: the mean, if it is finite, is the token.
    float ratio = 0;
    CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes()) {
      const float mean = load(mean_p, c);
      ratio += i == 0 ? (is_finite(mean) ? 0.0f : NAN)
                      : log_ratio_channel(load(proposed, c), mean, load(std_p, c), load(mean_q, c),
                                          load(std_q, c), 1.0f);
    }
    ratio = group.sum(ratio);
    if (!is_finite(ratio)) {
      store_everywhere(group, channels, NAN, state);
      return {accepted, i, 2};
    }
    if (i > 0 && !(real_log(window.uniforms[accepted]) < ratio)) {
      const int32_t kept = first_kept(group, channels, mean_p, std_p, mean_q, std_q, 0.0f, pool);
      if (kept < 0)
        store_everywhere(group, channels, NAN, state);
      else
        store_try(group, channels, mean_p, std_p, pool, kept, state);
      return {accepted, i - 1, kept < 0 ? 1 : 0};
    }
    ++accepted;
    emitted = i == 0 ? mean_p : proposed;
    if (i == 0) break;
  }
  CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes())
    state[c] = emitted[c];
  return {accepted, index - accepted, 0};
}

// One row of the network's outputs, [C] each; `eps_uncond` is null without guidance.
template <typename T>
struct TransitionRow {
  const T *x, *eps, *eps_uncond, *v;
  const float* noise;
};

template <typename T>
struct MovedRow {
  T* next;
  float *mean, *log_std, *x0hat;
};

// `table` holds the coefficients of head step i in the order of Step; null if there is no such step.
template <typename T, typename Group>
CSD_HD void transition_token(const Group& group, int32_t channels, const float* table, int32_t i,
                             float scale, float temperature, const TransitionRow<T>& in,
                             const MovedRow<T>& out) {
  const Step<float> step =
      table ? Step<float>{table[0], table[1], table[2], table[3], table[4], table[5]}
            : Step<float>{NAN, NAN, NAN, NAN, NAN, NAN};
  CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes()) {
    const float predicted = load(in.eps, c);
    const float eps = in.eps_uncond ? guided(predicted, load(in.eps_uncond, c), scale) : predicted;
    const Move<float> move = transition(step, load(in.x, c), eps, load(in.v, c));
    out.mean[c] = move.mean;
    out.log_std[c] = move.log_std;
    out.x0hat[c] = move.x0hat;
    const float innovation = i == 0 ? 0.0f : temperature * real_exp(move.log_std) * in.noise[c];
    out.next[c] = Element<T>::store(move.mean + innovation);
  }
}

}  // namespace csd
