// What TensorRT looks up in a plugin library that IPluginRegistry::loadLibrary opens
// (`trtexec --dynamicPlugins`). Nothing is registered when the library is opened by other means:
// loadLibrary fails where a plugin is registered already.
#include "plugin.h"

#define CSD_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Creators {
  std::vector<std::unique_ptr<csd::Creator>> owned;
  std::vector<nvinfer1::IPluginCreatorInterface*> all;

  Creators() {
    for (csd::Operator const& op : csd::operators()) {
      owned.push_back(std::make_unique<csd::Creator>(op));
      all.push_back(owned.back().get());
    }
  }
};

}  // namespace

CSD_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static Creators const creators;
  count = static_cast<int32_t>(creators.all.size());
  return creators.all.data();
}

CSD_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  csd::set_logger_finder(finder);
}
