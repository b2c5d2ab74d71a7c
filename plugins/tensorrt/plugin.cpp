#include "plugin.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

namespace csd {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

nvinfer1::ILoggerFinder* logger_finder = nullptr;

// TensorRT's interfaces are noexcept: a failure is a message and a status.
void report(char const* op, std::string const& text) {
  std::string const message = std::string(op) + ": " + text;
  nvinfer1::ILogger* logger = logger_finder ? logger_finder->findLogger() : nullptr;
  if (logger)
    logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
  else
    std::fprintf(stderr, "%s\n", message.c_str());
}

nvinfer1::DataType fixed_type(Type type, nvinfer1::DataType element) {
  switch (type) {
    case Type::element: return element;
    case Type::float32: return nvinfer1::DataType::kFLOAT;
    case Type::int32: return nvinfer1::DataType::kINT32;
    case Type::boolean: return nvinfer1::DataType::kBOOL;
  }
  return element;
}

// Whether the kernels have an element type, and which.
bool element_type(nvinfer1::DataType type, DataType* found) {
  if (type == nvinfer1::DataType::kFLOAT)
    *found = DataType::float32;
  else if (type == nvinfer1::DataType::kHALF)
    *found = DataType::float16;
  else if (type == nvinfer1::DataType::kBF16)
    *found = DataType::bfloat16;
  else
    return false;
  return true;
}

bool is_letter(char dimension) { return dimension >= 'A' && dimension <= 'Z'; }

// Sizes by letter, checked against each other; an empty text if all is well. A negative dimension is
// not known yet.
std::string read_sizes(Operator const& op, nvinfer1::Dims const* dims, int32_t count,
                       std::array<int32_t, 128>* size) {
  auto const given = op.given(count);
  if (given.empty()) return "it cannot have " + std::to_string(count) + " inputs";
  size->fill(-1);
  for (int32_t i = 0; i < count; ++i) {
    char const* shape = op.inputs[given[i]].shape;
    std::string const which = "input " + std::to_string(i);
    if (dims[i].nbDims != static_cast<int32_t>(std::strlen(shape)))
      return which + " has " + std::to_string(dims[i].nbDims) + " dimensions, not " + shape;
    for (int32_t d = 0; d < dims[i].nbDims; ++d) {
      int64_t const value = dims[i].d[d];
      if (value < 0) continue;
      if (value > std::numeric_limits<int32_t>::max()) return which + " is too large";
      int32_t& known = (*size)[static_cast<unsigned char>(shape[d])];
      if (!is_letter(shape[d])) known = shape[d] - '0';
      if (known >= 0 && known != value)
        return which + " has " + std::to_string(value) + " where " + shape[d] + " is " +
               std::to_string(known);
      known = static_cast<int32_t>(value);
    }
  }
  return {};
}

PluginFieldType field_type(Field const& field) {
  return field.integer ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32;
}

// The value of a field as its creator was given it; Python gives 64 bits.
bool read_number(PluginField const& field, double* value) {
  if (field.data == nullptr || field.length != 1) return false;
  auto as = [&](auto number) {
    std::memcpy(&number, field.data, sizeof number);
    *value = static_cast<double>(number);
    return true;
  };
  switch (field.type) {
    case PluginFieldType::kINT32: return as(int32_t());
    case PluginFieldType::kINT64: return as(int64_t());
    case PluginFieldType::kFLOAT32: return as(float());
    case PluginFieldType::kFLOAT64: return as(double());
    default: return false;
  }
}

// An empty text if `given` is read into `attributes`.
std::string read_fields(Operator const& op, nvinfer1::PluginFieldCollection const& given,
                        Attributes* attributes) {
  for (int32_t i = 0; i < given.nbFields; ++i) {
    PluginField const& found = given.fields[i];
    Field const* field = nullptr;
    for (Field const& own : op.fields)
      if (std::strcmp(own.name, found.name) == 0) field = &own;
    if (field == nullptr) return std::string("it has no field ") + found.name;
    double value = 0;
    if (!read_number(found, &value)) return std::string(found.name) + " is not a number";
    if (field->integer) {
      if (value != 0 && value != 1) return std::string(found.name) + " is neither 0 nor 1";
      attributes->*field->integer = static_cast<int32_t>(value);
    } else {
      if (!(value > 0) || !std::isfinite(value))
        return std::string(found.name) + " is not positive and finite";
      attributes->*field->real = static_cast<float>(value);
    }
  }
  return {};
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { logger_finder = finder; }

std::vector<size_t> Operator::given(int32_t count) const {
  for (bool const all : {true, false}) {
    std::vector<size_t> positions;
    for (size_t i = 0; i < inputs.size(); ++i)
      if (all || !inputs[i].optional) positions.push_back(i);
    if (static_cast<int32_t>(positions.size()) == count) return positions;
  }
  return {};
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept { return new Plugin(op_, attributes_); }

int32_t Plugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                                nvinfer1::DynamicPluginTensorDesc const*, int32_t) noexcept {
  std::vector<nvinfer1::Dims> dims;
  for (int32_t i = 0; i < inputs; ++i) dims.push_back(in[i].desc.dims);
  std::array<int32_t, 128> size;
  std::string const wrong = read_sizes(op_, dims.data(), inputs, &size);
  if (!wrong.empty()) report(op_.name, wrong);
  return wrong.empty() ? 0 : -1;
}

int32_t Plugin::getOutputDataTypes(nvinfer1::DataType* types, int32_t outputs,
                                   nvinfer1::DataType const* in, int32_t) const noexcept {
  if (outputs != getNbOutputs()) return -1;
  for (int32_t i = 0; i < outputs; ++i) types[i] = fixed_type(op_.outputs[i].type, in[0]);
  return 0;
}

int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs,
                                nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* out,
                                int32_t outputs, nvinfer1::IExprBuilder&) noexcept {
  auto const given = op_.given(inputs);
  if (given.empty() || outputs != getNbOutputs()) {
    report(op_.name, "it cannot have " + std::to_string(inputs) + " inputs");
    return -1;
  }
  std::array<nvinfer1::IDimensionExpr const*, 128> size{};
  for (int32_t i = 0; i < inputs; ++i) {
    char const* shape = op_.inputs[given[i]].shape;
    if (in[i].nbDims != static_cast<int32_t>(std::strlen(shape))) {
      report(op_.name, "input " + std::to_string(i) + " is not of shape " + shape);
      return -1;
    }
    for (int32_t d = 0; d < in[i].nbDims; ++d)
      size[static_cast<unsigned char>(shape[d])] = in[i].d[d];
  }
  for (int32_t i = 0; i < outputs; ++i) {
    char const* shape = op_.outputs[i].shape;
    out[i].nbDims = static_cast<int32_t>(std::strlen(shape));
    for (int32_t d = 0; d < out[i].nbDims; ++d)
      out[i].d[d] = size[static_cast<unsigned char>(shape[d])];
  }
  return 0;
}

bool Plugin::supportsFormatCombination(int32_t position,
                                       nvinfer1::DynamicPluginTensorDesc const* tensors,
                                       int32_t inputs, int32_t) noexcept {
  auto const given = op_.given(inputs);
  if (given.empty()) return false;
  auto const& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  DataType element;
  if (position == 0) return element_type(tensor.type, &element);
  Slot const& slot =
      position < inputs ? op_.inputs[given[position]] : op_.outputs[position - inputs];
  return tensor.type == fixed_type(slot.type, tensors[0].desc.type);
}

int32_t Plugin::getNbOutputs() const noexcept { return static_cast<int32_t>(op_.outputs.size()); }

int32_t Plugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs,
                              nvinfer1::PluginTensorDesc const*, int32_t) noexcept {
  std::vector<nvinfer1::Dims> dims;
  for (int32_t i = 0; i < inputs; ++i) dims.push_back(in[i].dims);
  std::string const wrong = read_sizes(op_, dims.data(), inputs, &size_);
  inputs_ = wrong.empty() ? inputs : 0;
  if (!wrong.empty()) report(op_.name, wrong);
  return wrong.empty() ? 0 : -1;
}

int32_t Plugin::enqueue(nvinfer1::PluginTensorDesc const* in_desc,
                        nvinfer1::PluginTensorDesc const*, void const* const* in, void* const* out,
                        void*, cudaStream_t stream) noexcept {
  Call call{attributes_, DataType::float32, size_, {}, out, stream};
  auto const given = op_.given(inputs_);
  if (given.empty() || !element_type(in_desc[0].type, &call.type)) return -1;
  for (size_t i = 0; i < given.size(); ++i) call.in[given[i]] = in[i];
  cudaError_t const status = op_.launch(call);
  if (status != cudaSuccess) report(op_.name, cudaGetErrorString(status));
  return status == cudaSuccess ? 0 : -1;
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return clone();
}

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept {
  serialized_.clear();
  for (Field const& field : op_.fields) {
    void const* value = field.integer ? static_cast<void const*>(&(attributes_.*field.integer))
                                      : static_cast<void const*>(&(attributes_.*field.real));
    serialized_.emplace_back(field.name, value, field_type(field), 1);
  }
  collection_ = {static_cast<int32_t>(serialized_.size()), serialized_.data()};
  return &collection_;
}

Creator::Creator(Operator const& op) : op_(op) {
  for (Field const& field : op.fields)
    names_.emplace_back(field.name, nullptr, field_type(field), 1);
  collection_ = {static_cast<int32_t>(names_.size()), names_.data()};
}

nvinfer1::IPluginV3* Creator::createPlugin(char const*, nvinfer1::PluginFieldCollection const* given,
                                           nvinfer1::TensorRTPhase) noexcept {
  Attributes attributes;
  if (given != nullptr) {
    std::string const wrong = read_fields(op_, *given, &attributes);
    if (!wrong.empty()) {
      report(op_.name, wrong);
      return nullptr;
    }
  }
  return new Plugin(op_, attributes);
}

}  // namespace csd
