// The host side of the runtime's head samplers: all that happens between two network calls.
//
// Both samplers alternate `gather`, which writes the rows that the network is to evaluate and
// returns their number (0: all chains have ended), and `settle`, which takes the network's outputs.
// csd/runtime/head/speculative.py and parallel.py are the same in NumPy, and explain the algorithms.
#pragma once

#include "host.h"

extern "C" {

// The rows of a round, with room for `capacity` of them.
struct CsdRows {
  float* x;        // [R, C]
  int64_t* step;   // [R]
  int64_t* token;  // [R]
  int64_t* start;  // [N + 1]: the rows of token n are start[n] .. start[n + 1] - 1
};

// Chains on their way; `index` is the next head step of each, -1 when finished.
struct CsdChains {
  int64_t tokens, channels, steps;
  float temperature;
  CsdSteps table;
  const float* normals;  // [N, S, C]
  int64_t* index;        // [N]
  int64_t* rounds;       // [N]
  float* states;         // [S + 1, N, C]; entry i + 1 is the state at head step i
  float* sum_log_std;    // [N, C]
  float* std;            // [N, C], of the last head step
};

struct CsdSpeculation {
  CsdChains chains;
  CsdRows rows;
  const float* weight;           // [S, 4C, C]
  const float* bias;             // [S, C]
  const float* share;            // [S, C]
  const int64_t* windows;        // [S]
  const double* log_uniforms;    // [N, S]
  void* const* generators;       // [N], NumPy's bitgen_t
  float *x0hat, *v;              // [N, C], guesses at the next head step
  float* noise;                  // [N, S, C], what the sequential chain would use
  float *mean, *log_std, *next;  // [R, C], the drafted transitions
};

int64_t csd_speculation_gather(CsdSpeculation* run);
// eps, v [R, C]. Returns 0; or i + 1 if the network is not finite at head step i; or -1 if a
// residual was not hit.
int64_t csd_speculation_settle(CsdSpeculation* run, const float* eps, const float* v);

struct CsdIteration {
  CsdChains chains;
  CsdRows rows;
  int64_t window;
  float tolerance;
  // d x_{i-1} / d x_i of every token, [S, N, C, C], improved with every evaluation; null, with the
  // other two, where no state moves.
  float* slope;
  float *before, *mean;  // [S, N, C], where head steps were evaluated last, and what that gave
};

int64_t csd_iteration_gather(CsdIteration* run);
// eps, v [R, C]. Returns 0, or i + 1 if the network is not finite at head step i.
int64_t csd_iteration_settle(CsdIteration* run, const float* eps, const float* v);
}
