// Rounds of the exact head sampler that stay on the device: what head.cpp does for the host.
//
//     csd_head_draft -> the network on the rows that it wrote -> csd_head_walk -> again
//
// A warp has each token, and its lanes the channels. Every token has `width` rows in each round,
// whatever its window is: those that are left over hold zeros and are ignored. The host sees
// `progress` only, three numbers a round. Residual samples are drawn here, from the same streams
// and with the same draws as csd_continue_residual, in float32; so a seed makes the tokens that it
// makes on the host, up to rounding.
#pragma once

#include "kernels.cuh"

#if defined(__CUDACC__)
#define CSD_MULTIPLY_HIGH(a, b) __umul64hi(a, b)
#define CSD_OUT_OF_LINE __noinline__
#else
#define CSD_MULTIPLY_HIGH(a, b) uint64_t((unsigned __int128)(a) * (b) >> 64)
#define CSD_OUT_OF_LINE
#endif

// Device addresses of dense arrays; csd/plugins/structs.py mirrors this structure.
struct CsdRounds {
  // given
  const float* tables;        // [S, 6]: recip, recipm1, coef_x0, coef_x, log_std_base, log_std_slope
  const float *weight, *bias, *share;  // [S, 4C, C], [S, C], [S, C]: the affine draft
  const int32_t* windows;     // [S]
  const float* normals;       // [N, S, C]
  const float* log_uniforms;  // [N, S]
  const uint64_t* streams;    // [N, 6]: counter and key of each token's Philox stream
  const float* scale;         // [N], guidance; null without
  // chains on their way
  int32_t* index;             // [N], next head step, -1 when finished
  int64_t* drawn;             // [N], place in the stream: 4 is the first word after the counter
  float *x0hat, *v;           // [N, C], guesses at the next head step
  float* features;            // [N, 4C], scratch
  // results
  float* states;              // [S + 1, N, C]; entry i + 1 is the state at head step i
  float* noise;               // [N, S, C]
  float *sum_log_std, *std;   // [N, C]
  int32_t *rounds, *rows_of;  // [N]
  int32_t* status;            // [N]: 0; i + 1 if not finite at head step i; -1 if no residual was hit
  // rows of a round: [2 N, width] with guidance, the unconditional ones last; [N, width] without
  float* x;                      // [.., C]
  int64_t *step, *token;         // [..]
  float *mean, *log_std, *next;  // [N, width, C], the drafted transitions
  const float *eps, *network_v;  // [.., C], from the network
  int32_t* progress;             // [3]: tokens on their way, widest next window, tokens that failed
  int32_t tokens, channels, steps;
  float temperature;
};

namespace csd {

// NumPy's Philox4x64-10: word `place` of a stream, counted as its bit generator does.
struct PhiloxWords {
  const uint64_t* stream;
  int64_t block = -1;
  uint64_t words[4] = {0, 0, 0, 0};

  __device__ explicit PhiloxWords(const uint64_t* counter_and_key) : stream(counter_and_key) {}

  __device__ uint64_t word(int64_t place) {
    if (place / 4 != block) fill(place / 4);
    return words[place % 4];
  }

  // A double in [0, 1) as NumPy makes it.
  __device__ double uniform(int64_t place) {
    return double(word(place) >> 11) * (1.0 / 9007199254740992.0);
  }

 private:
  __device__ CSD_OUT_OF_LINE void fill(int64_t number) {
    block = number;
    uint64_t c0 = stream[0] + uint64_t(number), c1 = stream[1] + (c0 < stream[0] ? 1 : 0);
    uint64_t c2 = stream[2] + (c1 < stream[1] ? 1 : 0), c3 = stream[3] + (c2 < stream[2] ? 1 : 0);
    uint64_t k0 = stream[4], k1 = stream[5];
    CSD_ROLLED for (int round = 0; round < 10; ++round) {
      const uint64_t m0 = 0xD2E7470EE14C6C93ull, m1 = 0xCA5A826395121157ull;
      const uint64_t high0 = CSD_MULTIPLY_HIGH(m0, c0), low0 = m0 * c0;
      const uint64_t high1 = CSD_MULTIPLY_HIGH(m1, c2), low1 = m1 * c2;
      c0 = high1 ^ c1 ^ k0;
      c1 = low1;
      c2 = high0 ^ c3 ^ k1;
      c3 = low0;
      k0 += 0x9E3779B97F4A7C15ull;
      k1 += 0xBB67AE8584CAA73Bull;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
  }
};

// One token of a run.
struct RoundsToken {
  const CsdRounds& run;
  const LaneGroup& group;
  int32_t token;

  __device__ int64_t own(int32_t c) const { return int64_t(token) * run.channels + c; }
  __device__ int64_t of_step(int32_t i, int32_t c) const {
    return (int64_t(token) * run.steps + i) * run.channels + c;
  }
  __device__ float* state(int32_t entry) const {
    return run.states + (int64_t(entry) * run.tokens + token) * run.channels;
  }
  __device__ float* features() const { return run.features + int64_t(token) * 4 * run.channels; }
  __device__ Step<float> table(int32_t i) const {
    const float* t = run.tables + 6 * i;
    return {t[0], t[1], t[2], t[3], t[4], t[5]};
  }

  // x0hat after the transition at head step i, from the features that the lanes have written.
  __device__ float moved_guess(int32_t i, int32_t c, float x0hat) const {
    const int32_t channels = run.channels;
    const float *weight = run.weight + int64_t(i) * 4 * channels * channels + c, *in = features();
    float sum = x0hat + run.bias[int64_t(i) * channels + c];
    CSD_ROLLED for (int32_t k = 0; k < 4 * channels; ++k) sum += in[k] * weight[k * channels];
    return sum;
  }
};

__device__ inline void wait_for_lanes(const LaneGroup& group) { __syncwarp(group.mask); }

// Write the rows of a token and draft its transitions; returns its window.
__device__ inline void draft_token(const RoundsToken& at, int32_t width) {
  const CsdRounds& run = at.run;
  const LaneGroup& group = at.group;
  const int32_t channels = run.channels, first = run.index[at.token];
  const bool active = first >= 0 && run.status[at.token] == 0;
  const int32_t window = active ? run.windows[first] : 0;
  const int64_t start = int64_t(at.token) * width, other = int64_t(run.tokens) * width;
  float* const features = at.features();
  CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes())
    features[2 * channels + c] = run.x0hat[at.own(c)];
  for (int32_t j = 0; j < width; ++j) {
    const int64_t row = start + j;
    const int32_t i = j < window ? first - j : 0;
    const Step<float> step = at.table(i);
    if (group.lane() == 0) {
      run.step[row] = i;
      run.token[row] = at.token;
      if (run.scale) {
        run.step[other + row] = i;
        run.token[other + row] = run.tokens + at.token;
      }
    }
    CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes()) {
      const int64_t here = row * channels + c;
      const float* before = j == 0 ? at.state(first + 1) + c : run.next + here - channels;
      const float x = j < window ? *before : 0.0f;
      run.x[here] = x;
      if (run.scale) run.x[other * channels + here] = x;
      if (j >= window) continue;
      // The variance share moves along its mean over tokens.
      const float v = run.v[at.own(c)] + (run.share[int64_t(i) * channels + c] -
                                          run.share[int64_t(first) * channels + c]);
      const Move<float> move = move_from_x0hat(step, x, features[2 * channels + c], v);
      const float innovation =
          i ? run.temperature * real_exp(move.log_std) * run.normals[at.of_step(i, c)] : 0.0f;
      run.mean[here] = move.mean;
      run.log_std[here] = move.log_std;
      run.next[here] = move.mean + innovation;
      features[c] = innovation;
      features[channels + c] = x;
      features[3 * channels + c] = v;
    }
    if (j + 1 >= window) continue;
    wait_for_lanes(group);
    float moved[2];  // rounds.py: at most 64 channels, so two for a lane
    int32_t count = 0;
    CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes())
      moved[count++] = at.moved_guess(i, c, features[2 * channels + c]);
    wait_for_lanes(group);
    count = 0;
    CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes())
      features[2 * channels + c] = moved[count++];
  }
  if (active && group.lane() == 0) {
    ++run.rounds[at.token];
    run.rows_of[at.token] += window;
  }
}

// Tries of the residual, one for each lane at a time; see sample_residual. `a` and `b` are in
// memory, [C] each.
struct ResidualTry {
  const float *a, *b;
  float d, constant, total;
  int32_t channels;

  // Whether try `number` of a block that starts at `place` of the stream is kept.
  __device__ bool kept(const uint64_t* stream, int64_t place, int32_t number) const {
    PhiloxWords words(stream);
    const int64_t first = place + number * residual_draws(channels), last = extra(first);
    int32_t replaced;
    float size;
    tilt(stream, first, number, &replaced, &size);
    float ratio = d, bound = constant;
    for (int32_t c = 0; c < channels; ++c) {
      const float y = c == replaced ? size : normal(words, first, c);
      ratio += (a[c] * y + b[c]) * y;
      bound += (a[c] > 0 ? a[c] : 0.0f) * y * y + fabsf(b[c] * y);
    }
    if (number % 2 == 0) bound = 1.0f;
    return float(words.uniform(last + 5)) * bound < residual_keep(ratio);
  }

  // Channel c of a try.
  __device__ float value(const uint64_t* stream, int64_t place, int32_t number, int32_t c) const {
    PhiloxWords words(stream);
    const int64_t first = place + number * residual_draws(channels);
    int32_t replaced;
    float size;
    tilt(stream, first, number, &replaced, &size);
    return c == replaced ? size : normal(words, first, c);
  }

 private:
  __device__ int64_t extra(int64_t first) const { return first + 2 * ((channels + 1) / 2); }

  // Box-Muller; 1 - u is formed in double, which keeps the tails.
  __device__ static float radius_squared(double u) { return -2.0f * real_log(float(1.0 - u)); }

  __device__ static float normal(PhiloxWords& words, int64_t first, int32_t c) {
    const double u = words.uniform(first + c / 2 * 2), w = words.uniform(first + c / 2 * 2 + 1);
    const float radius = sqrtf(radius_squared(u)), angle = float(6.283185307179586 * w);
    return radius * (c % 2 ? sinf(angle) : cosf(angle));
  }

  // Odd tries replace one channel's normal by a chi variable with 3 or 2 degrees of freedom.
  __device__ void tilt(const uint64_t* stream, int64_t first, int32_t number, int32_t* replaced,
                       float* size) const {
    *replaced = -1;
    *size = 0;
    if (number % 2 == 0) return;
    PhiloxWords words(stream);
    const int64_t last = extra(first);
    const float wanted = float(words.uniform(last)) * total;
    float below = 0;
    int32_t chosen = -1;
    for (int32_t c = 0; c < 2 * channels && chosen < 0; ++c) {
      below += mass(c);
      if (wanted < below) chosen = c;
    }
    if (chosen < 0) return;
    float square = radius_squared(words.uniform(last + 2));
    if (chosen < channels) {
      const float radius = sqrtf(radius_squared(words.uniform(last + 3)));
      const float other = radius * cosf(float(6.283185307179586 * words.uniform(last + 4)));
      square += other * other;
    }
    *replaced = chosen % channels;
    *size = (words.uniform(last + 1) < 0.5 ? -1.0f : 1.0f) * sqrtf(square);
  }

  __device__ float mass(int32_t c) const {
    if (c < channels) return a[c] > 0 ? a[c] : 0.0f;
    return fabsf(b[c - channels]) * 0.7978845608f;  // E|y| = sqrt(2/pi)
  }
};

// The lowest of the lanes whose `value` holds, or -1.
__device__ inline int32_t first_lane(const LaneGroup& group, bool value) {
  float lowest = value ? float(group.lane()) : float(kWarp);
  for (int32_t distance = group.lanes() / 2; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(group.mask, lowest, distance);
    lowest = other < lowest ? other : lowest;
  }
  return lowest < kWarp ? int32_t(lowest) : -1;
}

constexpr int32_t kMostResidualTries = 1 << 20;

// Sample the residual of one entry into `out`, and its standardised value into `noise`. The lanes
// have written the densities of their channels to the token's features: mean_p, std_p, mean_q,
// std_q. False if no try was kept.
__device__ inline bool residual_token(const RoundsToken& at, float* out, float* noise) {
  const CsdRounds& run = at.run;
  const LaneGroup& group = at.group;
  const int32_t channels = run.channels;
  float *const mean_p = at.features(), *const std_p = mean_p + channels;
  float *const a = std_p + channels, *const b = a + channels;
  float d = 0, masses = 0, own_mean[2], own_std[2];
  int32_t count = 0;
  CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes()) {
    const float mean_q = a[c], std_q = b[c];
    own_mean[count] = mean_p[c];
    own_std[count++] = std_p[c];
    // In double: where p and q are close, little is left of these differences.
    const double rho = double(std_p[c]) / std_q, delta = (double(mean_p[c]) - mean_q) / std_q;
    a[c] = float(0.5 * (rho * rho - 1));
    b[c] = float(rho * delta);
    d += float(0.5 * delta * delta - log(rho));
    masses += (a[c] > 0 ? a[c] : 0.0f) + fabsf(b[c]) * 0.7978845608f;
  }
  d = group.sum(d);
  const float constant = d > 0 ? d : 0.0f, total = group.sum(masses) + constant;
  if (!(total > 0) || !is_finite(total)) return false;
  wait_for_lanes(group);
  const ResidualTry tries = {a, b, d, constant, total, channels};
  const uint64_t* stream = run.streams + 6 * int64_t(at.token);
  const int64_t draws = residual_draws(channels);
  int64_t place = run.drawn[at.token];
  int32_t block = 16;
  for (int32_t made = 0; made < kMostResidualTries; made += block, block = block < 4096 ? 2 * block : block) {
    for (int32_t base = 0; base < block; base += group.lanes()) {
      const int32_t number = base + group.lane();
      const int32_t lane =
          first_lane(group, number < block && tries.kept(stream, place, number));
      if (lane < 0) continue;
      count = 0;
      CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes(), ++count) {
        const float y = tries.value(stream, place, base + lane, c);
        noise[c] = y;
        out[c] = own_mean[count] + own_std[count] * y;
      }
      wait_for_lanes(group);
      if (group.lane() == 0) run.drawn[at.token] = place + block * draws;
      return true;
    }
    place += block * draws;
  }
  return false;
}

// Walk the rows of a token; returns 0, or what its status becomes.
__device__ inline int32_t walk_token(const RoundsToken& at, int32_t width) {
  const CsdRounds& run = at.run;
  const LaneGroup& group = at.group;
  const int32_t channels = run.channels, first = run.index[at.token];
  const int32_t window = run.windows[first];
  const int64_t start = int64_t(at.token) * width, other = int64_t(run.tokens) * width * channels;
  const float scale = run.scale ? run.scale[at.token] : 1.0f;
  float* const features = at.features();
  for (int32_t j = 0; j < window; ++j) {
    const int32_t i = first - j;
    const Step<float> step = at.table(i);
    const int64_t row = (start + j) * channels;
    float ratio = 0, own_mean[2], own_log_std[2], own_x0hat[2];
    bool finite = true;
    int32_t count = 0;
    CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes(), ++count) {
      const float predicted = run.eps[row + c];
      const float eps = run.scale ? guided(predicted, run.eps[other + row + c], scale) : predicted;
      const Move<float> move = transition(step, run.x[row + c], eps, run.network_v[row + c]);
      own_mean[count] = move.mean;
      own_log_std[count] = move.log_std;
      own_x0hat[count] = move.x0hat;
      finite &= is_finite(move.mean) && is_finite(move.log_std);
      float standard = 0;
      if (i)
        ratio += drafted_log_ratio_channel(run.normals[at.of_step(i, c)], run.mean[row + c],
                                           run.log_std[row + c], move.mean, move.log_std,
                                           run.temperature, &standard);
      if (i) run.noise[at.of_step(i, c)] = standard;
    }
    if (!group.all(finite)) return i + 1;
    ratio = group.sum(ratio);
    float* const emitted = at.state(i);
    count = 0;
    CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes(), ++count) {
      if (i) run.sum_log_std[at.own(c)] += own_log_std[count];
      else run.std[at.own(c)] = run.temperature * real_exp(own_log_std[count]);
      emitted[c] = i ? run.next[row + c] : own_mean[count];
    }
    if (i == 0) {  // deterministic: nothing to accept
      if (group.lane() == 0) run.index[at.token] = -1;
      return 0;
    }
    const bool accepted = run.log_uniforms[int64_t(at.token) * run.steps + i] < ratio;
    if (accepted && j + 1 < window) continue;
    if (!accepted) {
      count = 0;
      CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes(), ++count) {
        features[c] = own_mean[count];
        features[channels + c] = run.temperature * real_exp(own_log_std[count]);
        features[2 * channels + c] = run.mean[row + c];
        features[3 * channels + c] = run.temperature * real_exp(run.log_std[row + c]);
      }
      if (!residual_token(at, emitted, run.noise + at.of_step(i, 0))) return -1;
    }
    // Where the walk stops, the guess moves on from the network's own outputs.
    wait_for_lanes(group);
    count = 0;
    CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes(), ++count) {
      features[c] = emitted[c] - own_mean[count];
      features[channels + c] = run.x[row + c];
      features[2 * channels + c] = own_x0hat[count];
      features[3 * channels + c] = run.network_v[row + c];
    }
    wait_for_lanes(group);
    count = 0;
    CSD_ROLLED for (int32_t c = group.lane(); c < channels; c += group.lanes(), ++count) {
      run.x0hat[at.own(c)] = at.moved_guess(i, c, own_x0hat[count]);
      run.v[at.own(c)] = run.network_v[row + c] + (run.share[int64_t(i - 1) * channels + c] -
                                                   run.share[int64_t(i) * channels + c]);
    }
    if (group.lane() == 0) run.index[at.token] = i - 1;
    return 0;
  }
  return 0;
}

}  // namespace csd

#define CSD_DEFINE_ROUNDS                                                                        \
  extern "C" __global__ void __launch_bounds__(csd::kThreads)                                    \
      csd_head_draft(const CsdRounds* __restrict__ run, int32_t width) {                         \
    const csd::Place place = csd::place_of_thread(csd::kWarp);                                   \
    if (blockIdx.x == 0 && threadIdx.x == 0)                                                     \
      run->progress[0] = run->progress[1] = run->progress[2] = 0;                                \
    for (int64_t n = place.first(); n < run->tokens; n += place.stride())                        \
      csd::draft_token({*run, place.group, int32_t(n)}, width);                                  \
  }                                                                                              \
  extern "C" __global__ void __launch_bounds__(csd::kThreads)                                    \
      csd_head_walk(const CsdRounds* __restrict__ run, int32_t width) {                          \
    const csd::Place place = csd::place_of_thread(csd::kWarp);                                   \
    for (int64_t n = place.first(); n < run->tokens; n += place.stride()) {                      \
      if (run->status[n] != 0 || run->index[n] < 0) continue;                                    \
      const int32_t status = csd::walk_token({*run, place.group, int32_t(n)}, width);            \
      csd::wait_for_lanes(place.group);                                                          \
      if (place.group.lane() != 0) continue;                                                     \
      run->status[n] = status;                                                                   \
      if (status != 0) atomicAdd(&run->progress[2], 1);                                          \
      if (status != 0 || run->index[n] < 0) continue;                                            \
      atomicAdd(&run->progress[0], 1);                                                           \
      atomicMax(&run->progress[1], run->windows[run->index[n]]);                                 \
    }                                                                                            \
  }
