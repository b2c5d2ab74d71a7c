// The four operators: what they take and return, and how a call becomes a launch of launch.h. Names,
// order, types and shapes are those of csd/plugins/onnx_functions.py.
#include "plugin.h"

namespace csd {
namespace {

constexpr Type T = Type::element, F = Type::float32, I = Type::int32, B = Type::boolean;

constexpr Field kKind = {"kind", &Attributes::kind, nullptr};
constexpr Field kInnerTemperature = {"inner_temperature", nullptr, &Attributes::inner_temperature};
constexpr Field kTemperature = {"temperature", nullptr, &Attributes::temperature};

template <typename Value>
Value const* in(Call const& call, size_t i) {
  return static_cast<Value const*>(call.in[i]);
}

template <typename Value>
Value* out(Call const& call, size_t i) {
  return static_cast<Value*>(call.out[i]);
}

AcceptanceKind kind(Call const& call) { return static_cast<AcceptanceKind>(call.attributes.kind); }

cudaError_t accept(Call const& call) {
  AcceptParams a{};
  a.batch = call.size['B'];
  a.tokens = call.size['K'];
  a.channels = call.size['C'];
  a.kind = kind(call);
  a.inner_temperature = call.attributes.inner_temperature;
  a.x = call.in[0];
  a.mean_p = call.in[1];
  a.std_p = call.in[2];
  a.sum_log_std_p = call.in[3];
  a.mean_q = call.in[4];
  a.std_q = call.in[5];
  a.sum_log_std_q = call.in[6];
  a.u = in<float>(call, 7);
  a.accepted = out<uint8_t>(call, 0);
  a.log_ratio = out<float>(call, 1);
  a.prefix = out<int32_t>(call, 2);
  a.error = out<int32_t>(call, 3);
  return launch_accept(a, call.type, call.stream);
}

cudaError_t resample(Call const& call) {
  ResampleParams a{};
  a.tries = call.size['R'];
  a.tokens = call.size['N'];
  a.channels = call.size['C'];
  a.kind = kind(call);
  a.mean_p = call.in[0];
  a.std_p = call.in[1];
  a.sum_log_std_p = call.in[2];
  a.mean_q = call.in[3];
  a.std_q = call.in[4];
  a.sum_log_std_q = call.in[5];
  a.normals = in<float>(call, 6);
  a.uniforms = in<float>(call, 7);
  a.x = call.out[0];
  a.done = out<uint8_t>(call, 1);
  a.error = out<int32_t>(call, 2);
  return launch_resample(a, call.type, call.stream);
}

cudaError_t verify_window(Call const& call) {
  VerifyWindowParams a{};
  a.tokens = call.size['N'];
  a.window = call.size['K'];
  a.channels = call.size['C'];
  a.tries = call.size['R'];
  a.proposed = call.in[0];
  a.mean_p = call.in[1];
  a.std_p = call.in[2];
  a.mean_q = call.in[3];
  a.std_q = call.in[4];
  a.uniforms = in<float>(call, 5);
  a.index = in<int32_t>(call, 6);
  a.pool_normals = in<float>(call, 7);
  a.pool_uniforms = in<float>(call, 8);
  a.accepted = out<int32_t>(call, 0);
  a.next_index = out<int32_t>(call, 1);
  a.state = call.out[2];
  a.status = out<int32_t>(call, 3);
  return launch_verify_window(a, call.type, call.stream);
}

cudaError_t transition(Call const& call) {
  TransitionParams a{};
  a.rows = call.size['R'];
  a.channels = call.size['C'];
  a.steps = call.size['S'];
  a.temperature = call.attributes.temperature;
  a.x = call.in[0];
  a.eps = call.in[1];
  a.v = call.in[2];
  a.eps_uncond = call.in[3];
  a.scale = in<float>(call, 4);
  a.noise = in<float>(call, 5);
  a.step = in<int32_t>(call, 6);
  a.tables = in<float>(call, 7);
  a.next = call.out[0];
  a.mean = out<float>(call, 1);
  a.log_std = out<float>(call, 2);
  a.x0hat = out<float>(call, 3);
  return launch_transition(a, call.type, call.stream);
}

}  // namespace

std::vector<Operator> const& operators() {
  static std::vector<Operator> const all = {
      {"CsdAccept",
       {{T, "BKC"}, {T, "BKC"}, {T, "BKC"}, {T, "BKC"}, {T, "BKC"}, {T, "BKC"}, {T, "BKC"},
        {F, "BK"}},
       {{B, "BK"}, {F, "BK"}, {I, "B"}, {I, "B"}},
       {kKind, kInnerTemperature},
       &accept},
      {"CsdResample",
       {{T, "NC"}, {T, "NC"}, {T, "NC"}, {T, "NC"}, {T, "NC"}, {T, "NC"}, {F, "RNC"}, {F, "RN"}},
       {{T, "NC"}, {B, "N"}, {I, "N"}},
       {kKind},
       &resample},
      {"CsdVerifyWindow",
       {{T, "NKC"}, {T, "NKC"}, {T, "NKC"}, {T, "NKC"}, {T, "NKC"}, {F, "NK"}, {I, "N"},
        {F, "RNC"}, {F, "RN"}},
       {{I, "N"}, {I, "N"}, {T, "NC"}, {I, "N"}},
       {},
       &verify_window},
      {"CsdTransition",
       {{T, "RC"}, {T, "RC"}, {T, "RC"}, {T, "RC", true}, {F, "R", true}, {F, "RC"}, {I, "R"},
        {F, "S6"}},
       {{T, "RC"}, {F, "RC"}, {F, "RC"}, {F, "RC"}},
       {kTemperature},
       &transition},
  };
  return all;
}

}  // namespace csd
