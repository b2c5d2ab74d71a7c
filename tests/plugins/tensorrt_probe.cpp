// Asks the plugins of plugins/tensorrt what TensorRT asks them, and prints the answers as JSON. The
// launch functions are replaced by ones that print what they are given, so it needs no device.
#include <cstdio>
#include <cstring>
#include <map>
#include <type_traits>

#include "../../plugins/tensorrt/plugin.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" char const* cudaGetErrorString(cudaError_t) { return "a CUDA error"; }

namespace {

struct Expr final : nvinfer1::IDimensionExpr {};
struct Builder final : nvinfer1::IExprBuilder {};

std::string call;  // what the last launch was given

template <typename Value>
void note(char const* name, Value value) {
  call += std::string(call.empty() ? "" : ", ") + "\"" + name + "\": ";
  if constexpr (std::is_pointer_v<Value>)
    call += std::to_string(reinterpret_cast<intptr_t>(value));
  else
    call += std::to_string(value);
}

template <typename Values, typename Show>
std::string list(Values const& values, Show const& show) {
  std::string text;
  for (auto const& value : values) text += (text.empty() ? "" : ", ") + show(value);
  return "[" + text + "]";
}

std::string quoted(std::string const& text) { return "\"" + text + "\""; }

std::string fields(nvinfer1::PluginFieldCollection const* collection) {
  std::string text;
  for (int32_t i = 0; i < collection->nbFields; ++i) {
    auto const& field = collection->fields[i];
    bool const real = field.type == nvinfer1::PluginFieldType::kFLOAT32;
    std::string value = "null";
    if (field.data && real) value = std::to_string(*static_cast<float const*>(field.data));
    if (field.data && !real) value = std::to_string(*static_cast<int32_t const*>(field.data));
    text += (i ? ", [" : "[") + quoted(field.name) + ", " + quoted(real ? "float" : "int") + ", " +
            value + "]";
  }
  return "[" + text + "]";
}

std::map<nvinfer1::DataType, std::string> const kTypes = {
    {nvinfer1::DataType::kFLOAT, "float"},   {nvinfer1::DataType::kHALF, "float16"},
    {nvinfer1::DataType::kBF16, "bfloat16"}, {nvinfer1::DataType::kINT32, "int32"},
    {nvinfer1::DataType::kBOOL, "bool"},     {nvinfer1::DataType::kINT64, "int64"}};

int32_t size_of(char dimension) {
  return dimension >= '0' && dimension <= '9' ? dimension - '0' : 100 + dimension;
}

// The types that a position may have, given the element type and the right types before it.
std::string allowed(nvinfer1::IPluginV3OneBuild& build,
                    std::vector<nvinfer1::DynamicPluginTensorDesc> tensors, int32_t position,
                    int32_t inputs) {
  std::vector<std::string> names;
  for (auto const& [type, name] : kTypes) {
    tensors[position].desc.type = type;
    if (build.supportsFormatCombination(position, tensors.data(), inputs,
                                        static_cast<int32_t>(tensors.size()) - inputs))
      names.push_back(name);
  }
  return list(names, quoted);
}

std::string ask(nvinfer1::IPluginV3& plugin, csd::Operator const& op, int32_t inputs) {
  auto& core = *static_cast<nvinfer1::IPluginV3OneBuild*>(
      plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
  auto& run = *static_cast<nvinfer1::IPluginV3OneRuntime*>(
      plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
  auto const given = op.given(inputs);
  int32_t const outputs = core.getNbOutputs();

  std::vector<nvinfer1::DynamicPluginTensorDesc> tensors(inputs + outputs);
  std::vector<nvinfer1::PluginTensorDesc> descs(inputs + outputs);
  std::vector<nvinfer1::DimsExprs> shapes(inputs), found(outputs);
  std::map<nvinfer1::IDimensionExpr const*, std::string> letters;
  std::map<char, Expr> exprs;
  for (int32_t i = 0; i < inputs; ++i) {
    char const* shape = op.inputs[given[i]].shape;
    shapes[i].nbDims = static_cast<int32_t>(std::strlen(shape));
    auto& dims = tensors[i].desc.dims;
    dims.nbDims = shapes[i].nbDims;
    for (int32_t d = 0; d < shapes[i].nbDims; ++d) {
      shapes[i].d[d] = &exprs[shape[d]];
      letters[shapes[i].d[d]] = std::string(1, shape[d]);
      dims.d[d] = size_of(shape[d]);
    }
  }
  Builder builder;
  int32_t const shaped = core.getOutputShapes(shapes.data(), inputs, nullptr, 0, found.data(),
                                              outputs, builder);

  std::vector<nvinfer1::DataType> in_types(inputs, nvinfer1::DataType::kHALF), out_types(outputs);
  core.getOutputDataTypes(out_types.data(), outputs, in_types.data(), inputs);

  std::vector<std::string> types;
  for (int32_t i = 0; i < inputs + outputs; ++i) {
    tensors[0].desc.type = nvinfer1::DataType::kHALF;
    for (auto& tensor : tensors) tensor.desc.format = nvinfer1::TensorFormat::kLINEAR;
    types.push_back(allowed(core, tensors, i, inputs));
  }
  tensors[0].desc.format = nvinfer1::TensorFormat::kCHW4;
  bool const vectorised = core.supportsFormatCombination(0, tensors.data(), inputs, outputs);

  for (int32_t i = 0; i < inputs + outputs; ++i) descs[i] = tensors[i].desc;
  std::vector<void const*> in(inputs);
  std::vector<void*> out(outputs);
  for (int32_t i = 0; i < inputs; ++i) in[i] = reinterpret_cast<void*>(intptr_t(1000 + i));
  for (int32_t i = 0; i < outputs; ++i) out[i] = reinterpret_cast<void*>(intptr_t(2000 + i));
  call.clear();
  int32_t const configured = core.configurePlugin(tensors.data(), inputs, nullptr, outputs);
  auto* attached = static_cast<nvinfer1::IPluginV3OneRuntime*>(
      run.attachToContext(nullptr)->getCapabilityInterface(
          nvinfer1::PluginCapabilityType::kRUNTIME));
  int32_t const changed = attached->onShapeChange(descs.data(), inputs, nullptr, outputs);
  int32_t const ran = attached->enqueue(descs.data(), nullptr, in.data(), out.data(), nullptr,
                                        reinterpret_cast<cudaStream_t>(intptr_t(3000)));
  descs[1].dims.d[0] += 1;
  int32_t const refused = attached->onShapeChange(descs.data(), inputs, nullptr, outputs);

  auto dims_text = [&](nvinfer1::DimsExprs const& dims) {
    std::string text;
    for (int32_t d = 0; d < dims.nbDims; ++d) text += letters[dims.d[d]];
    return quoted(text);
  };
  return "{\"status\": [" + std::to_string(shaped) + ", " + std::to_string(configured) + ", " +
         std::to_string(changed) + ", " + std::to_string(ran) + "], \"refused\": " +
         std::to_string(refused) + ", \"vectorised\": " + (vectorised ? "true" : "false") +
         ", \"inputs\": " + list(shapes, dims_text) + ", \"outputs\": " + list(found, dims_text) +
         ", \"types\": " + list(types, [](std::string const& t) { return t; }) +
         ", \"output_types\": " +
         list(out_types, [](nvinfer1::DataType t) { return quoted(kTypes.at(t)); }) +
         ", \"call\": {" + call + "}, \"fields\": " + fields(attached->getFieldsToSerialize()) +
         "}";
}

// A plugin whose fields have these values, or null.
nvinfer1::IPluginV3* make(nvinfer1::IPluginCreatorV3One& creator, double integer, double real,
                          bool wide) {
  auto const* names = creator.getFieldNames();
  int32_t const as_int = static_cast<int32_t>(integer);
  int64_t const as_long = static_cast<int64_t>(integer);
  float const as_float = static_cast<float>(real);
  std::vector<nvinfer1::PluginField> values;
  for (int32_t i = 0; i < names->nbFields; ++i) {
    auto field = names->fields[i];
    bool const is_real = field.type == nvinfer1::PluginFieldType::kFLOAT32;
    if (wide)
      field.type = is_real ? nvinfer1::PluginFieldType::kFLOAT64 : nvinfer1::PluginFieldType::kINT64;
    field.data = is_real ? (wide ? static_cast<void const*>(&real) : &as_float)
                         : (wide ? static_cast<void const*>(&as_long) : &as_int);
    values.push_back(field);
  }
  nvinfer1::PluginFieldCollection const given{static_cast<int32_t>(values.size()), values.data()};
  return creator.createPlugin("node", &given, nvinfer1::TensorRTPhase::kBUILD);
}

}  // namespace

namespace csd {

cudaError_t launch_accept(AcceptParams const& a, DataType type, cudaStream_t stream) {
  note("B", a.batch), note("K", a.tokens), note("C", a.channels);
  note("kind", static_cast<int32_t>(a.kind)), note("inner_temperature", a.inner_temperature);
  note("x", a.x), note("mean_p", a.mean_p), note("std_p", a.std_p);
  note("sum_log_std_p", a.sum_log_std_p), note("mean_q", a.mean_q), note("std_q", a.std_q);
  note("sum_log_std_q", a.sum_log_std_q), note("u", a.u), note("accepted", a.accepted);
  note("log_ratio", a.log_ratio), note("prefix", a.prefix), note("error", a.error);
  note("type", static_cast<int32_t>(type)), note("stream", stream);
  return cudaSuccess;
}

cudaError_t launch_resample(ResampleParams const& a, DataType type, cudaStream_t stream) {
  note("R", a.tries), note("N", a.tokens), note("C", a.channels);
  note("kind", static_cast<int32_t>(a.kind)), note("mean_p", a.mean_p), note("std_p", a.std_p);
  note("sum_log_std_p", a.sum_log_std_p), note("mean_q", a.mean_q), note("std_q", a.std_q);
  note("sum_log_std_q", a.sum_log_std_q), note("normals", a.normals);
  note("uniforms", a.uniforms), note("x", a.x), note("done", a.done), note("error", a.error);
  note("type", static_cast<int32_t>(type)), note("stream", stream);
  return cudaSuccess;
}

cudaError_t launch_verify_window(VerifyWindowParams const& a, DataType type, cudaStream_t stream) {
  note("N", a.tokens), note("K", a.window), note("C", a.channels), note("R", a.tries);
  note("proposed", a.proposed), note("mean_p", a.mean_p), note("std_p", a.std_p);
  note("mean_q", a.mean_q), note("std_q", a.std_q), note("uniforms", a.uniforms);
  note("index", a.index), note("pool_normals", a.pool_normals);
  note("pool_uniforms", a.pool_uniforms), note("accepted", a.accepted);
  note("next_index", a.next_index), note("state", a.state), note("status", a.status);
  note("type", static_cast<int32_t>(type)), note("stream", stream);
  return cudaSuccess;
}

cudaError_t launch_transition(TransitionParams const& a, DataType type, cudaStream_t stream) {
  note("R", a.rows), note("C", a.channels), note("S", a.steps);
  note("temperature", a.temperature), note("x", a.x), note("eps", a.eps), note("v", a.v);
  note("eps_uncond", a.eps_uncond), note("scale", a.scale), note("noise", a.noise);
  note("step", a.step), note("tables", a.tables), note("next", a.next), note("mean", a.mean);
  note("log_std", a.log_std), note("x0hat", a.x0hat);
  note("type", static_cast<int32_t>(type)), note("stream", stream);
  return cudaSuccess;
}

}  // namespace csd

int main() {
  int32_t count = 0;
  auto* const* creators = getCreators(count);
  std::printf("[");
  for (int32_t i = 0; i < count; ++i) {
    auto& creator = *static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
    csd::Operator const& op = csd::operators()[i];
    std::string forms;
    for (int32_t inputs = 1; inputs < 16; ++inputs) {
      if (op.given(inputs).empty()) continue;
      forms += (forms.empty() ? "" : ", ") + ask(*make(creator, 1, 0.5, false), op, inputs);
    }
    bool const bare = creator.createPlugin("node", nullptr, nvinfer1::TensorRTPhase::kBUILD);
    std::printf(
        "%s{\"name\": \"%s\", \"namespace\": \"%s\", \"version\": \"%s\", \"fields\": %s, "
        "\"forms\": [%s], \"bare\": %s, \"wide\": %s, \"wrong_kind\": %s, \"wrong_real\": %s}",
        i ? ",\n" : "", creator.getPluginName(), creator.getPluginNamespace(),
        creator.getPluginVersion(), fields(creator.getFieldNames()).c_str(), forms.c_str(),
        bare ? "true" : "false", fields(static_cast<nvinfer1::IPluginV3OneRuntime*>(
            make(creator, 1, 0.25, true)->getCapabilityInterface(
                nvinfer1::PluginCapabilityType::kRUNTIME))->getFieldsToSerialize()).c_str(),
        make(creator, 2, 1.0, false) ? "true" : "false",
        make(creator, 0, -1.0, false) ? "true" : "false");
  }
  std::printf("]\n");
  return 0;
}
