// The C interface of the host library. csd/plugins/structs.py mirrors
// these structures; CSD_ABI_VERSION grows with every change to them.
#pragma once

#include <stdint.h>

#include "csd_ops.h"

#define CSD_ABI_VERSION 2
#define CSD_MAX_TRIES (1 << 20)

extern "C" {

// Densities of N tokens, [N, C] each.
struct CsdDensity {
  const double *mean, *std, *sum_log_std;
};

// Coefficients of the head steps, [S] each.
struct CsdSteps {
  const float *recip, *recipm1, *coef_x0, *coef_x, *log_std_base, *log_std_slope;
};

int64_t csd_abi_version();

// accepted [N], log_ratio [N]; sigma_sign is 1 for the paper's Sigma, -1 for the released code's.
void csd_accept(int64_t tokens, int64_t channels, const double* x, const CsdDensity* p,
                const CsdDensity* q, const double* uniforms, double sigma_sign,
                double inner_temperature, uint8_t* accepted, double* log_ratio);

// normals [K, N, C], uniforms [K, N] -> x [N, C], done [N].
void csd_resample(int64_t tries, int64_t tokens, int64_t channels, const CsdDensity* p,
                  const CsdDensity* q, const double* normals, const double* uniforms,
                  double sigma_sign, double* x, uint8_t* done);

// One token; `generator` is NumPy's bitgen_t. Returns 1 if x [C] was sampled.
int64_t csd_continue_residual(int64_t channels, const double* mean_p, const double* std_p,
                              const double* mean_q, const double* std_q, double log_sigma,
                              void* generator, int64_t max_tries, double* x);

// One DDPM transition of R rows, [R, C] each.
void csd_transition(int64_t rows, int64_t channels, const CsdSteps* steps, const int64_t* step,
                    const float* x, const float* eps, const float* v, float* mean, float* log_std,
                    float* x0hat);

// Arrays [N, K, C], uniforms [N, K] -> accepted [N], states [N, K, C]. Returns 1 if a density is
// not finite, 2 if a residual was not hit.
int64_t csd_verify_window(int64_t tokens, int64_t window, int64_t channels, const double* proposed,
                          const double* mean_p, const double* std_p, const double* mean_q,
                          const double* std_q, const double* uniforms, void* generator,
                          int64_t* accepted, double* states);
}

inline csd::Step<float> csd_step(const CsdSteps& s, int64_t i) {
  return {s.recip[i],  s.recipm1[i],      s.coef_x0[i],
          s.coef_x[i], s.log_std_base[i], s.log_std_slope[i]};
}
