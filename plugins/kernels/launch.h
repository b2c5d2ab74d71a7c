// The operators on a CUDA device: what the TensorRT plugins and other C++ code call.
//
// All pointers are device pointers to dense, row-major arrays. `T*` fields point to elements of the
// type that is passed to the launch function; arithmetic is float32 whatever that is. Launches are
// asynchronous on `stream`, need no workspace, and may be captured into a CUDA graph. An empty batch
// launches nothing. Outputs do not overlap inputs. The equations are those of csd/plugins/reference.py.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

namespace csd {

enum class DataType : int32_t { float32 = 0, float16 = 1, bfloat16 = 2 };

// `paper` follows the paper's equations; `relaxed` has Sigma upside down, as in the released code.
enum class AcceptanceKind : int32_t { paper = 0, relaxed = 1 };

enum class WindowStatus : int32_t {
  done = 0,
  pool_ended = 1,  // the residual at entry `accepted` is still to be sampled exactly
  not_finite = 2,  // a density on the walk is not finite
};

// Density-ratio acceptance of K drafted tokens in each of B rows.
struct AcceptParams {
  int32_t batch, tokens, channels;  // B, K, C
  AcceptanceKind kind;
  float inner_temperature;
  const void *x, *mean_p, *std_p, *sum_log_std_p, *mean_q, *std_q, *sum_log_std_q;  // T [B, K, C]
  const float* u;                                                                   // [B, K]
  uint8_t* accepted;  // bool [B, K]; a ratio that is not a number is never accepted
  float* log_ratio;   // [B, K]
  int32_t* prefix;    // [B], leading accepted tokens
  int32_t* error;     // [B], 1 if a ratio of the row is not a number or an input is not finite
};
cudaError_t launch_accept(const AcceptParams& params, DataType type, cudaStream_t stream);

// Residual resampling of N tokens with a pool of R tries each.
struct ResampleParams {
  int32_t tries, tokens, channels;  // R, N, C
  AcceptanceKind kind;
  const void *mean_p, *std_p, *sum_log_std_p, *mean_q, *std_q, *sum_log_std_q;  // T [N, C]
  const float* normals;                                                         // [R, N, C]
  const float* uniforms;                                                        // [R, N]
  void* x;         // T [N, C]; where `done` is false this is the first try (not a number if there
                   // is none), and not a sample
  uint8_t* done;   // bool [N], false where the pool ended: exact continuation is needed
  int32_t* error;  // [N], 1 if a density of the token is not finite
};
cudaError_t launch_resample(const ResampleParams& params, DataType type, cudaStream_t stream);

// The walk of the exact head sampler over K proposed transitions of N tokens, one warp a token.
//
// Entry j is the transition at head step `index - j`. It is accepted with probability min(1, p/q);
// at head step 0 it is deterministic and `mean_p` is taken. The walk stops at the first rejection,
// which a residual sample replaces, at head step 0, or at the end of the window.
struct VerifyWindowParams {
  int32_t tokens, window, channels, tries;                   // N, K, C, R
  const void *proposed, *mean_p, *std_p, *mean_q, *std_q;    // T [N, K, C]
  const float* uniforms;                                     // [N, K]
  const int32_t* index;                                      // [N]; negative: nothing left to do
  const float* pool_normals;                                 // [R, N, C]
  const float* pool_uniforms;                                // [R, N]
  int32_t* accepted;    // [N], entries accepted; the one at head step 0 counts
  int32_t* next_index;  // [N], head step of the next transition, -1 when the chain has ended; where
                        // a density is not finite, the head step of that
  void* state;          // T [N, C], after the walk; not a number unless `status` is done; 0 for
                        // a token with a negative index or an empty window
  int32_t* status;      // [N], WindowStatus
};
cudaError_t launch_verify_window(const VerifyWindowParams& params, DataType type,
                                 cudaStream_t stream);

// One DDPM transition of R rows: guidance, posterior mean, learned-range variance and noise.
struct TransitionParams {
  int32_t rows, channels, steps;  // R, C, S
  float temperature;
  const void *x, *eps, *v;  // T [R, C]
  const void* eps_uncond;   // T [R, C], or null for no guidance
  const float* scale;       // [R], null exactly if eps_uncond is
  const float* noise;       // [R, C]; not used at head step 0
  const int32_t* step;      // [R]; outputs of a row whose step is not in 0..S-1 are not numbers
  const float* tables;      // [S, 6]: recip, recipm1, coef_x0, coef_x, log_std_base, log_std_slope
  void* next;               // T [R, C]
  float *mean, *log_std, *x0hat;  // [R, C]
};
cudaError_t launch_transition(const TransitionParams& params, DataType type, cudaStream_t stream);

}  // namespace csd
