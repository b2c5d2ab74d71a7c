// What the four operators have in common as TensorRT plugins: one plugin class and one creator class,
// driven by a table that says what an operator takes, returns and launches (operators.cpp).
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "../kernels/launch.h"

namespace csd {

inline constexpr char const* kNamespace = "csd";
inline constexpr char const* kVersion = "1";

// Values of the attributes of all operators; an operator has the fields that it lists.
struct Attributes {
  int32_t kind = 0;
  float inner_temperature = 1;
  float temperature = 1;
};

struct Field {
  char const* name;
  int32_t Attributes::*integer = nullptr;
  float Attributes::*real = nullptr;  // exactly one of the two; reals are positive and finite
};

enum class Type { element, float32, int32, boolean };

// One input or output. `shape` names its dimensions by letters, or by digits where they are fixed;
// inputs with the same letter have the same size there.
struct Slot {
  Type type;
  char const* shape;
  bool optional = false;  // optional inputs are given all or none
};

// One launch. Inputs are in the operator's order, null where they are left out.
struct Call {
  Attributes attributes;
  DataType type;
  std::array<int32_t, 128> size;  // by dimension letter
  std::array<void const*, 16> in;
  void* const* out;
  cudaStream_t stream;
};

struct Operator {
  char const* name;
  std::vector<Slot> inputs;  // the first has the element type
  std::vector<Slot> outputs;
  std::vector<Field> fields;
  cudaError_t (*launch)(Call const&);

  // The inputs of a node that gives `count`; empty if no node may give so many.
  std::vector<size_t> given(int32_t count) const;
};

// The operators of the library, in the order of its creators.
std::vector<Operator> const& operators();

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  Plugin(Operator const& op, Attributes const& attributes) : op_(op), attributes_(attributes) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  char const* getPluginName() const noexcept override { return op_.name; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                          nvinfer1::DynamicPluginTensorDesc const* out,
                          int32_t outputs) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* types, int32_t outputs,
                             nvinfer1::DataType const* in, int32_t inputs) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs,
                          nvinfer1::DimsExprs const* shape_inputs, int32_t shape_count,
                          nvinfer1::DimsExprs* out, int32_t outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                 int32_t inputs, int32_t outputs) noexcept override;
  int32_t getNbOutputs() const noexcept override;

  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs,
                        nvinfer1::PluginTensorDesc const* out, int32_t outputs) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* in_desc,
                  nvinfer1::PluginTensorDesc const* out_desc, void const* const* in,
                  void* const* out, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 private:
  Operator const& op_;
  Attributes attributes_;
  int32_t inputs_ = 0;  // how many this node gives, known from onShapeChange on
  std::array<int32_t, 128> size_{};
  std::vector<nvinfer1::PluginField> serialized_;
  nvinfer1::PluginFieldCollection collection_{};
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(Operator const& op);

  nvinfer1::IPluginV3* createPlugin(char const* name, nvinfer1::PluginFieldCollection const* given,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
  char const* getPluginName() const noexcept override { return op_.name; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  Operator const& op_;
  std::vector<nvinfer1::PluginField> names_;
  nvinfer1::PluginFieldCollection collection_;
};

// Where messages go; null before TensorRT names one, and then they go to standard error.
void set_logger_finder(nvinfer1::ILoggerFinder* finder);

}  // namespace csd
