// The arithmetic of the csd operators, for the host and for CUDA: one source of truth.
//
// Everything here works on one channel of one token, or on one token; what loops over tokens lives
// in host.cpp, token_ops.h and kernels.cuh. `Real` is double on the host (the reference's precision)
// and float on the device. The equations are those of csd/plugins/reference.py, which every function is tested
// against.
#pragma once

#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define CSD_HD __host__ __device__ inline
#else
#define CSD_HD inline
#endif

namespace csd {

CSD_HD float real_exp(float x) { return expf(x); }
CSD_HD double real_exp(double x) { return exp(x); }
CSD_HD float real_log(float x) { return logf(x); }
CSD_HD double real_log(double x) { return log(x); }
CSD_HD float real_expm1(float x) { return expm1f(x); }
CSD_HD double real_expm1(double x) { return expm1(x); }
CSD_HD bool is_finite(float x) { return fabsf(x) <= 3.402823466e38f; }
CSD_HD bool is_finite(double x) { return fabs(x) <= 1.7976931348623157e308; }

// One channel's share of log N(x; mean_p, std_p) - log N(x; mean_q, std_q), with (x - mean)/std
// divided by the inner temperature in both; the constant log(2 pi) cancels.
template <typename Real>
CSD_HD Real log_ratio_channel(Real x, Real mean_p, Real std_p, Real mean_q, Real std_q,
                              Real inverse_temperature) {
  const Real zp = (x - mean_p) * inverse_temperature / std_p;
  const Real zq = (x - mean_q) * inverse_temperature / std_q;
  // Factored, so that equal densities give exactly 0 also where products and sums are fused.
  return Real(0.5) * ((zq - zp) * (zq + zp)) + real_log(std_q) - real_log(std_p);
}

// The same at x = mean_p + std_p normal. It never forms x, so it does not suffer where a standard
// deviation is below the rounding of x.
template <typename Real>
CSD_HD Real residual_log_ratio_channel(Real normal, Real mean_p, Real std_p, Real mean_q,
                                       Real std_q) {
  const Real zq = (mean_p - mean_q + std_p * normal) / std_q;
  return Real(0.5) * ((zq - normal) * (zq + normal)) + real_log(std_q) - real_log(std_p);
}

// Probability max(0, 1 - exp(-log_ratio)) of keeping a draw from p in the residual.
template <typename Real>
CSD_HD Real residual_keep(Real log_ratio) {
  return -real_expm1(-(log_ratio > Real(0) ? log_ratio : Real(0)));
}

// Coefficients of head step i.
template <typename Real>
struct Step {
  Real recip, recipm1, coef_x0, coef_x;
  Real log_std_base, log_std_slope;  // log std = base + slope v
};

template <typename Real>
struct Move {
  Real mean, log_std, x0hat;
};

// One channel of p(x_{i-1} | x_i) from the guess x0hat of the clean token.
template <typename Real>
CSD_HD Move<Real> move_from_x0hat(const Step<Real>& s, Real x, Real x0hat, Real v) {
  return {s.coef_x0 * x0hat + s.coef_x * x, s.log_std_base + s.log_std_slope * v, x0hat};
}

// The same from the network's outputs.
template <typename Real>
CSD_HD Move<Real> transition(const Step<Real>& s, Real x, Real eps, Real v) {
  return move_from_x0hat(s, x, s.recip * x - s.recipm1 * eps, v);
}

// Classifier-free guidance mixes eps only.
template <typename Real>
CSD_HD Real guided(Real conditional, Real unconditional, Real scale) {
  return unconditional + scale * (conditional - unconditional);
}

// One channel's share of log p/q at y = mean_q + temperature exp(log_std_q) normal, and y
// standardised under p. It never forms y, so it does not suffer where a standard deviation is below
// the rounding of y.
template <typename Real>
CSD_HD Real drafted_log_ratio_channel(Real normal, Real mean_q, Real log_std_q, Real mean_p,
                                      Real log_std_p, Real temperature, Real* standard) {
  const Real difference = log_std_q - log_std_p;
  *standard = (mean_q - mean_p) * real_exp(-log_std_p) / temperature + real_exp(difference) * normal;
  return Real(0.5) * (normal * normal - *standard * *standard) + difference;
}

// Uniforms that one try of `sample_residual` takes, for C channels.
CSD_HD int64_t residual_draws(int64_t channels) { return 2 * ((channels + 1) / 2) + 6; }

// Box-Muller.
CSD_HD void normal_pair(double u, double w, double* first, double* second) {
  const double radius = sqrt(-2.0 * log1p(-u)), angle = 6.283185307179586 * w;
  *first = radius * cos(angle);
  *second = radius * sin(angle);
}

// Sample the residual max(0, p - q/Sigma)/Z of one token: reference.continue_residual.
//
// With y = (x - mean_p)/std_p the log ratio is l(y) = sum_c (a_c y_c^2 + b_c y_c) + d. Even tries
// draw from p; odd ones from the tilted proposal N(y) U(y), U(y) >= max(0, 1 - exp(-l)).
//
// `uniforms(n)` returns the next n uniforms in [0, 1); `scratch` holds 5 C + 1 doubles. Returns
// false if nothing was kept in `max_tries`, or the residual is empty. For one thread; rounds.cuh has
// the same for a warp.
template <typename Uniforms>
bool sample_residual(int64_t channels, const double* mean_p, const double* std_p,
                     const double* mean_q, const double* std_q, double log_sigma,
                     int64_t max_tries, Uniforms uniforms, double* scratch, double* out) {
  double *a = scratch, *b = a + channels, *y = b + channels, *masses = y + channels;
  double d = log_sigma, total = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const double rho = std_p[c] / std_q[c], delta = (mean_p[c] - mean_q[c]) / std_q[c];
    a[c] = 0.5 * (rho * rho - 1);
    b[c] = rho * delta;
    d += 0.5 * delta * delta - log(rho);
  }
  const double constant = d > 0 ? d : 0.0;
  const double mean_size = 0.7978845608028654;  // E|y| = sqrt(2/pi)
  for (int64_t c = 0; c < channels; ++c) total += masses[c] = a[c] > 0 ? a[c] : 0.0;
  for (int64_t c = 0; c < channels; ++c) total += masses[channels + c] = fabs(b[c]) * mean_size;
  total += masses[2 * channels] = constant;
  if (!(total > 0) || !is_finite(total)) return false;

  const int64_t draws = residual_draws(channels), pairs = (channels + 1) / 2;
  int64_t block = 16;
  for (int64_t tries = 0; tries < max_tries; tries += block, block = block < 4096 ? 2 * block : block) {
    const double* u = uniforms(block * draws);
    for (int64_t k = 0; k < block; ++k, u += 6) {
      for (int64_t h = 0; h < pairs; ++h) {
        double first, second;
        normal_pair(u[2 * h], u[2 * h + 1], &first, &second);
        y[2 * h] = first;
        if (2 * h + 1 < channels) y[2 * h + 1] = second;
      }
      u += 2 * pairs;  // six more follow
      double bound = 1;
      if (k % 2 == 1) {
        int64_t chosen = 0;
        double below = masses[0];
        while (chosen < 2 * channels && !(u[0] * total < below)) below += masses[++chosen];
        if (chosen < 2 * channels) {  // a chi variable with 3 or 2 degrees of freedom, either sign
          double size = -2.0 * log1p(-u[2]), other, unused;
          if (chosen < channels) {
            normal_pair(u[3], u[4], &other, &unused);
            size += other * other;
          }
          y[chosen % channels] = (u[1] < 0.5 ? -1.0 : 1.0) * sqrt(size);
        }
        bound = constant;
        for (int64_t c = 0; c < channels; ++c)
          bound += (a[c] > 0 ? a[c] : 0.0) * y[c] * y[c] + fabs(b[c]) * fabs(y[c]);
      }
      double ratio = d;
      for (int64_t c = 0; c < channels; ++c) ratio += a[c] * y[c] * y[c] + b[c] * y[c];
      if (u[5] * bound < residual_keep(ratio)) {
        for (int64_t c = 0; c < channels; ++c) out[c] = mean_p[c] + std_p[c] * y[c];
        return true;
      }
    }
  }
  return false;
}

}  // namespace csd
