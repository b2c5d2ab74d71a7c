#include "head.h"

#include <string.h>

#include <vector>

namespace {

// Squared share of x; csd/runtime/head/slopes.py has the same number.
constexpr float CSD_SLOPE_ROUNDING = 1e-10f;

float* row_of(float* base, int64_t row, int64_t channels) { return base + row * channels; }
const float* row_of(const float* base, int64_t row, int64_t channels) {
  return base + row * channels;
}

float* state_of(const CsdChains& chains, int64_t entry, int64_t token) {
  return row_of(chains.states, entry * chains.tokens + token, chains.channels);
}

const float* normals_of(const CsdChains& chains, int64_t token, int64_t step) {
  return row_of(chains.normals, token * chains.steps + step, chains.channels);
}

// out += in matrix, with `matrix` [C, C].
void add_product(int64_t channels, const float* in, const float* matrix, float* out) {
  for (int64_t k = 0; k < channels; ++k, matrix += channels) {
    const float factor = in[k];
    for (int64_t c = 0; c < channels; ++c) out[c] += factor * matrix[c];
  }
}

// Broyden's update: the smallest change of `slope` that explains how `mean` moved with x since the
// last evaluation, whose numbers are then replaced. Moves near the rounding of x teach nothing.
void improve_slope(int64_t channels, const float* x, const float* mean, float* old_x,
                   float* old_mean, float* slope) {
  float size = 0, square = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const float moved = x[c] - old_x[c];  // not a number before the first evaluation
    square += moved * moved;
    size += x[c] * x[c];
    old_mean[c] = mean[c] - old_mean[c];
  }
  if (square > CSD_SLOPE_ROUNDING * size) {
    for (int64_t k = 0; k < channels; ++k)
      for (int64_t c = 0; c < channels; ++c)
        old_mean[c] -= (x[k] - old_x[k]) * slope[k * channels + c];
    for (int64_t k = 0; k < channels; ++k) {
      const float share = (x[k] - old_x[k]) / square;
      for (int64_t c = 0; c < channels; ++c) slope[k * channels + c] += share * old_mean[c];
    }
  }
  memcpy(old_x, x, channels * sizeof(float));
  memcpy(old_mean, mean, channels * sizeof(float));
}

// The draft's guess of x0hat after the transition at head step i; AffineDraft.move.
void move_guess(const CsdSpeculation& run, int64_t i, const float* innovation, const float* x,
                const float* v, float* x0hat, float* old) {
  const int64_t channels = run.chains.channels, block = channels * channels;
  const float* weight = run.weight + i * 4 * block;
  memcpy(old, x0hat, channels * sizeof(float));
  for (int64_t c = 0; c < channels; ++c) x0hat[c] += run.bias[i * channels + c];
  add_product(channels, innovation, weight, x0hat);
  add_product(channels, x, weight + block, x0hat);
  add_product(channels, old, weight + 2 * block, x0hat);
  add_product(channels, v, weight + 3 * block, x0hat);
}

}  // namespace

extern "C" int64_t csd_speculation_gather(CsdSpeculation* run) {
  CsdChains& chains = run->chains;
  const int64_t channels = chains.channels;
  std::vector<float> scratch(4 * channels);
  float *innovation = scratch.data(), *guess = innovation + channels, *v = guess + channels,
        *old = v + channels;
  int64_t row = 0;
  for (int64_t n = 0; n < chains.tokens; ++n) {
    run->rows.start[n] = row;
    const int64_t first = chains.index[n];
    if (first < 0) continue;
    ++chains.rounds[n];
    const float* y = state_of(chains, first + 1, n);
    memcpy(guess, row_of(run->x0hat, n, channels), channels * sizeof(float));
    for (int64_t j = 0; j < run->windows[first]; ++j, ++row) {
      const int64_t i = first - j;
      const csd::Step<float> step = csd_step(run->chains.table, i);
      const float* normals = normals_of(chains, n, i);
      float *x = row_of(run->rows.x, row, channels), *mean = row_of(run->mean, row, channels),
            *log_std = row_of(run->log_std, row, channels),
            *next = row_of(run->next, row, channels);
      memcpy(x, y, channels * sizeof(float));
      run->rows.step[row] = i;
      run->rows.token[row] = n;
      for (int64_t c = 0; c < channels; ++c) {
        // The variance share moves along its mean over tokens.
        v[c] = run->v[n * channels + c] +
               (run->share[i * channels + c] - run->share[first * channels + c]);
        const auto move = csd::move_from_x0hat(step, x[c], guess[c], v[c]);
        mean[c] = move.mean;
        log_std[c] = move.log_std;
        innovation[c] = i ? chains.temperature * expf(move.log_std) * normals[c] : 0.0f;
        next[c] = move.mean + innovation[c];
      }
      if (i) move_guess(*run, i, innovation, x, v, guess, old);
      y = next;
    }
  }
  run->rows.start[chains.tokens] = row;
  return row;
}

extern "C" int64_t csd_speculation_settle(CsdSpeculation* run, const float* eps, const float* v) {
  CsdChains& chains = run->chains;
  const int64_t channels = chains.channels;
  const double temperature = chains.temperature;
  // Rows that the walk will not reach count too: a network that fails there is not to be trusted.
  for (int64_t row = 0; row < run->rows.start[chains.tokens]; ++row)
    for (int64_t at = row * channels; at < (row + 1) * channels; ++at)
      if (!csd::is_finite(eps[at]) || !csd::is_finite(v[at])) return run->rows.step[row] + 1;
  std::vector<float> scratch(5 * channels);
  float *mean = scratch.data(), *log_std = mean + channels, *x0hat = log_std + channels,
        *innovation = x0hat + channels, *old = innovation + channels;
  std::vector<double> wide(5 * channels);
  double *mean_p = wide.data(), *std_p = mean_p + channels, *mean_q = std_p + channels,
         *std_q = mean_q + channels, *sample = std_q + channels;

  for (int64_t n = 0; n < chains.tokens; ++n) {
    int64_t row = run->rows.start[n];
    const int64_t end = run->rows.start[n + 1];
    if (row == end) continue;
    float* emitted = nullptr;
    for (bool walking = true; walking; ++row) {
      const int64_t i = run->rows.step[row], at = row * channels;
      const csd::Step<float> step = csd_step(chains.table, i);
      const float *x = run->rows.x + at, *normals = normals_of(chains, n, i);
      float* noise = row_of(run->noise, n * chains.steps + i, channels);
      double ratio = 0;
      bool finite = true;
      for (int64_t c = 0; c < channels; ++c) {
        const auto move = csd::transition(step, x[c], eps[at + c], v[at + c]);
        mean[c] = move.mean;
        log_std[c] = move.log_std;
        x0hat[c] = move.x0hat;
        finite &= csd::is_finite(move.mean) && csd::is_finite(move.log_std);
      }
      if (!finite) return i + 1;
      emitted = state_of(chains, i, n);
      if (i == 0) {  // deterministic: nothing to accept
        memcpy(emitted, mean, channels * sizeof(float));
        for (int64_t c = 0; c < channels; ++c)
          chains.std[n * channels + c] = chains.temperature * expf(log_std[c]);
        chains.index[n] = -1;
        break;
      }
      for (int64_t c = 0; c < channels; ++c) {
        double standard;
        ratio += csd::drafted_log_ratio_channel<double>(normals[c], run->mean[at + c],
                                                        run->log_std[at + c], mean[c], log_std[c],
                                                        temperature, &standard);
        noise[c] = static_cast<float>(standard);
        chains.sum_log_std[n * channels + c] += log_std[c];
      }
      if (run->log_uniforms[n * chains.steps + i] < ratio) {
        memcpy(emitted, run->next + at, channels * sizeof(float));
        walking = row + 1 < end;
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          mean_p[c] = mean[c];
          std_p[c] = chains.temperature * expf(log_std[c]);
          mean_q[c] = run->mean[at + c];
          std_q[c] = chains.temperature * expf(run->log_std[at + c]);
        }
        if (!csd_continue_residual(channels, mean_p, std_p, mean_q, std_q, 0.0, run->generators[n],
                                   CSD_MAX_TRIES, sample))
          return -1;
        for (int64_t c = 0; c < channels; ++c) {
          emitted[c] = static_cast<float>(sample[c]);
          noise[c] = static_cast<float>((sample[c] - mean_p[c]) / std_p[c]);
        }
        walking = false;
      }
      if (walking) continue;
      // Where the walk stops, the guess moves on from the network's own outputs.
      for (int64_t c = 0; c < channels; ++c) {
        innovation[c] = emitted[c] - mean[c];
        const int64_t own = n * channels + c;
        run->v[own] = v[at + c] + (run->share[(i - 1) * channels + c] - run->share[i * channels + c]);
      }
      move_guess(*run, i, innovation, x, v + at, x0hat, old);
      memcpy(row_of(run->x0hat, n, channels), x0hat, channels * sizeof(float));
      chains.index[n] = i - 1;
    }
  }
  return 0;
}

extern "C" int64_t csd_iteration_gather(CsdIteration* run) {
  CsdChains& chains = run->chains;
  const int64_t channels = chains.channels;
  int64_t row = 0;
  for (int64_t n = 0; n < chains.tokens; ++n) {
    run->rows.start[n] = row;
    const int64_t first = chains.index[n];
    if (first < 0) continue;
    ++chains.rounds[n];
    const int64_t last = first + 1 > run->window ? first - run->window + 1 : 0;
    for (int64_t i = first; i >= last; --i, ++row) {
      memcpy(row_of(run->rows.x, row, channels), state_of(chains, i + 1, n),
             channels * sizeof(float));
      run->rows.step[row] = i;
      run->rows.token[row] = n;
    }
  }
  run->rows.start[chains.tokens] = row;
  return row;
}

extern "C" int64_t csd_iteration_settle(CsdIteration* run, const float* eps, const float* v) {
  CsdChains& chains = run->chains;
  const int64_t channels = chains.channels, block = channels * channels;
  std::vector<float> scratch(3 * channels);
  float *change = scratch.data(), *mean = change + channels, *after = mean + channels;
  for (int64_t n = 0; n < chains.tokens; ++n) {
    bool settled = true;  // no state so far has moved since it was evaluated
    for (int64_t row = run->rows.start[n]; row < run->rows.start[n + 1]; ++row) {
      const int64_t i = run->rows.step[row], at = row * channels;
      const csd::Step<float> step = csd_step(chains.table, i);
      const float *x = run->rows.x + at, *now = state_of(chains, i + 1, n),
                  *normals = normals_of(chains, n, i);
      float* next = state_of(chains, i, n);
      bool finite = true, still = true;
      for (int64_t c = 0; c < channels; ++c) {
        const auto move = csd::transition(step, x[c], eps[at + c], v[at + c]);
        const float std = expf(move.log_std);
        finite &= csd::is_finite(move.mean) && csd::is_finite(move.log_std);
        mean[c] = move.mean;
        after[c] = move.mean + (i ? chains.temperature * std * normals[c] : 0.0f);
        change[c] = run->tolerance * std;  // for now, the move that is forgiven
        if (settled && i) chains.sum_log_std[n * channels + c] += move.log_std;
        if (settled && !i) chains.std[n * channels + c] = chains.temperature * std;
      }
      if (!finite) return i + 1;
      if (run->slope) {
        const int64_t own = i * chains.tokens + n;
        float* slope = run->slope + own * block;
        improve_slope(channels, x, mean, row_of(run->before, own, channels),
                      row_of(run->mean, own, channels), slope);
        for (int64_t k = 0; k < channels; ++k) {
          const float moved = now[k] - x[k];
          for (int64_t c = 0; c < channels; ++c) after[c] += moved * slope[k * channels + c];
        }
      }
      for (int64_t c = 0; c < channels; ++c) still &= fabsf(after[c] - next[c]) <= change[c];
      memcpy(next, after, channels * sizeof(float));
      if (settled) chains.index[n] = i - 1;
      settled &= still;
    }
  }
  return 0;
}
