// The element types of 16 bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "token_ops.h"

namespace csd {

template <>
struct Element<__half> {
  CSD_HD static float load(__half value) { return __half2float(value); }
  CSD_HD static __half store(float value) { return __float2half_rn(value); }
};

template <>
struct Element<__nv_bfloat16> {
  CSD_HD static float load(__nv_bfloat16 value) { return __bfloat162float(value); }
  CSD_HD static __nv_bfloat16 store(float value) { return __float2bfloat16_rn(value); }
};

}  // namespace csd
