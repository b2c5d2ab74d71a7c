// The operators on the CPU, batched, behind a C interface (loaded by csd/plugins/host.py).
//
// Arrays are dense and row-major. Functions return 0, or a count where they say so.
#include "host.h"

#include <vector>

#include "csd_ops.h"

namespace {

// NumPy's random/bitgen.h: what every BitGenerator offers to C code.
struct BitGenerator {
  void* state;
  uint64_t (*next_uint64)(void*);
  uint32_t (*next_uint32)(void*);
  double (*next_double)(void*);
  uint64_t (*next_raw)(void*);
};

double token_log_ratio(int64_t channels, const double* x, const CsdDensity& p, const CsdDensity& q,
                       int64_t row, double sign, double inverse_temperature) {
  double ratio = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t at = row * channels + c;
    ratio += csd::log_ratio_channel(x[c], p.mean[at], p.std[at], q.mean[at], q.std[at],
                                    inverse_temperature);
    ratio += sign * (q.sum_log_std[at] - p.sum_log_std[at]);
  }
  return ratio;
}

}  // namespace

extern "C" int64_t csd_abi_version() { return CSD_ABI_VERSION; }

extern "C" void csd_accept(int64_t tokens, int64_t channels, const double* x, const CsdDensity* p,
                           const CsdDensity* q, const double* uniforms, double sigma_sign,
                           double inner_temperature, uint8_t* accepted, double* log_ratio) {
  for (int64_t n = 0; n < tokens; ++n) {
    const double ratio = token_log_ratio(channels, x + n * channels, *p, *q, n, sigma_sign,
                                         1 / inner_temperature);
    log_ratio[n] = ratio;
    accepted[n] = log(uniforms[n]) < (ratio < 0 ? ratio : ratio >= 0 ? 0.0 : ratio);
  }
}

extern "C" void csd_resample(int64_t tries, int64_t tokens, int64_t channels, const CsdDensity* p,
                             const CsdDensity* q, const double* normals, const double* uniforms,
                             double sigma_sign, double* x, uint8_t* done) {
  std::vector<double> proposal(channels);
  for (int64_t n = 0; n < tokens; ++n) {
    done[n] = 0;
    for (int64_t k = 0; k < tries && !done[n]; ++k) {
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t at = n * channels + c;
        proposal[c] = p->mean[at] + p->std[at] * normals[(k * tokens + n) * channels + c];
      }
      const double ratio =
          token_log_ratio(channels, proposal.data(), *p, *q, n, sigma_sign, 1.0);
      done[n] = uniforms[k * tokens + n] < csd::residual_keep(ratio);
      // As in the reference, the first try stands where none is kept.
      if (done[n] || k == 0)
        for (int64_t c = 0; c < channels; ++c) x[n * channels + c] = proposal[c];
    }
  }
}

extern "C" int64_t csd_continue_residual(int64_t channels, const double* mean_p,
                                         const double* std_p, const double* mean_q,
                                         const double* std_q, double log_sigma, void* generator,
                                         int64_t max_tries, double* x) {
  auto* bits = static_cast<BitGenerator*>(generator);
  std::vector<double> scratch(5 * channels + 1), buffer;
  auto uniforms = [&](int64_t count) {
    buffer.resize(count);
    for (auto& u : buffer) u = bits->next_double(bits->state);
    return buffer.data();
  };
  return csd::sample_residual(channels, mean_p, std_p, mean_q, std_q, log_sigma, max_tries,
                              uniforms, scratch.data(), x);
}

extern "C" void csd_transition(int64_t rows, int64_t channels, const CsdSteps* steps,
                               const int64_t* step, const float* x, const float* eps,
                               const float* v, float* mean, float* log_std, float* x0hat) {
  for (int64_t r = 0; r < rows; ++r) {
    const auto s = csd_step(*steps, step[r]);
    for (int64_t at = r * channels; at < (r + 1) * channels; ++at) {
      const auto move = csd::transition(s, x[at], eps[at], v[at]);
      mean[at] = move.mean;
      log_std[at] = move.log_std;
      x0hat[at] = move.x0hat;
    }
  }
}

extern "C" int64_t csd_verify_window(int64_t tokens, int64_t window, int64_t channels,
                                     const double* proposed, const double* mean_p,
                                     const double* std_p, const double* mean_q,
                                     const double* std_q, const double* uniforms, void* generator,
                                     int64_t* accepted, double* states) {
  for (int64_t n = 0; n < tokens; ++n) {
    accepted[n] = window;
    for (int64_t j = 0; j < window; ++j) {
      double ratio = 0;
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t at = (n * window + j) * channels + c;
        states[at] = proposed[at];
        ratio += csd::log_ratio_channel(proposed[at], mean_p[at], std_p[at], mean_q[at], std_q[at],
                                        1.0);
      }
      if (!csd::is_finite(ratio)) return 1;
      if (j < accepted[n] && !(log(uniforms[n * window + j]) < ratio)) accepted[n] = j;
    }
  }
  for (int64_t n = 0; n < tokens; ++n) {
    if (accepted[n] == window) continue;
    const int64_t at = (n * window + accepted[n]) * channels;
    if (!csd_continue_residual(channels, mean_p + at, std_p + at, mean_q + at, std_q + at, 0.0,
                               generator, CSD_MAX_TRIES, states + at))
      return 2;
  }
  return 0;
}
