// Just enough of CUDA to run kernels.cuh on a CPU: the threads of a block are fibers that are
// switched at barriers and shuffles. Slow, exact about who waits for whom, and without a device.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

namespace emulator {

struct Index {
  unsigned x;
};

enum class Wait { none, block, shuffle, vote };

struct Fiber {
  ucontext_t context;  // where it begins
  jmp_buf place;       // where it paused; jumps ask nothing of the kernel of the system
  bool started = false;
  std::vector<char> stack = std::vector<char>(1 << 16);
  bool ended = false;
  Wait wait = Wait::none;
  unsigned mask = 0;
  int distance = 0;
  float value = 0, result = 0;
};

inline Index thread, block, threads, blocks;
inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline std::function<void()> body;

inline void enter() {
  body();
  fibers[thread.x].ended = true;
  _longjmp(scheduler, 1);
}

// Let a fiber go on until it pauses or ends.
inline void resume(Fiber& fiber) {
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

inline Fiber& pause(Wait wait) {
  Fiber& own = fibers[thread.x];
  own.wait = wait;
  if (_setjmp(own.place) == 0) _longjmp(scheduler, 1);
  return own;
}

inline float exchange(Wait wait, unsigned mask, float value, int distance) {
  Fiber& own = fibers[thread.x];
  own.mask = mask;
  own.value = value;
  own.distance = distance;
  return pause(wait).result;
}

// Let the lanes of one fiber's mask go on if all of them wait in the same operation.
inline bool release_lanes(unsigned number) {
  Fiber* const warp = &fibers[number / 32 * 32];
  const Fiber& own = fibers[number];
  if (!(own.mask >> number % 32 & 1)) return false;  // a lane must name itself
  for (int lane = 0; lane < 32; ++lane)
    if (own.mask >> lane & 1 && (warp[lane].ended || warp[lane].wait != own.wait ||
                                 warp[lane].mask != own.mask ||
                                 warp[lane].distance != own.distance))
      return false;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(own.mask >> lane & 1)) continue;
    const int other = lane ^ own.distance;
    if (!(own.mask >> other & 1)) return false;  // would read a lane outside the mask
    warp[lane].result = warp[other].value;
    if (own.wait == Wait::vote)
      for (int l = 0; l < 32; ++l)
        if (own.mask >> l & 1 && !warp[l].value) warp[lane].result = 0;
  }
  for (int lane = 0; lane < 32; ++lane)
    if (own.mask >> lane & 1) warp[lane].wait = Wait::none;
  return true;
}

inline bool release_block() {
  for (const Fiber& fiber : fibers)
    if (fiber.ended || fiber.wait != Wait::block) return false;
  for (Fiber& fiber : fibers) fiber.wait = Wait::none;
  return true;
}

// Run a kernel. Returns 0, or 1 if threads wait for each other for ever.
inline int run(unsigned grid, unsigned width, const std::function<void()>& kernel) {
  body = kernel;
  blocks.x = grid;
  threads.x = width;
  if (fibers.size() != width) fibers = std::vector<Fiber>(width);  // their stacks serve again
  for (block.x = 0; block.x < grid; ++block.x) {
    for (Fiber& fiber : fibers) {
      fiber.started = fiber.ended = false;
      fiber.wait = Wait::none;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      makecontext(&fiber.context, enter, 0);
    }
    for (unsigned alive = width; alive > 0;) {
      bool progress = false;
      alive = 0;
      for (thread.x = 0; thread.x < width; ++thread.x) {
        Fiber& fiber = fibers[thread.x];
        if (!fiber.ended && fiber.wait == Wait::none) {
          resume(fiber);
          progress = true;
        }
        alive += !fiber.ended;
      }
      for (unsigned number = 0; number < width; ++number) {
        const Wait wait = fibers[number].wait;
        if (wait == Wait::shuffle || wait == Wait::vote) progress |= release_lanes(number);
      }
      progress |= release_block();
      if (!progress) return 1;
    }
  }
  return 0;
}

}  // namespace emulator

#define threadIdx emulator::thread
#define blockIdx emulator::block
#define blockDim emulator::threads
#define gridDim emulator::blocks

inline void __syncthreads() { emulator::pause(emulator::Wait::block); }
inline float __shfl_xor_sync(unsigned mask, float value, int distance) {
  return emulator::exchange(emulator::Wait::shuffle, mask, value, distance);
}
inline int __all_sync(unsigned mask, int value) {
  return emulator::exchange(emulator::Wait::vote, mask, value ? 1.0f : 0.0f, 0) != 0.0f;
}
inline void __syncwarp(unsigned mask) {
  emulator::exchange(emulator::Wait::vote, mask, 1.0f, 0);
}
inline void atomicAdd(int* at, int value) { *at += value; }
inline void atomicMin(int* at, int value) { *at = value < *at ? value : *at; }
inline void atomicMax(int* at, int value) { *at = value > *at ? value : *at; }
