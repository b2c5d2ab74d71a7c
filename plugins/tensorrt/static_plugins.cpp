// A library of its own that registers the plugins when it is opened, for programs that do no more
// than open it (`trtexec --staticPlugins`). It needs libnvinfer; libcsd_plugins.so does not.
#include <NvInferRuntime.h>

#include <cstdio>

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);

namespace {

bool register_all() {
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
  for (int32_t i = 0; i < count; ++i)
    if (!getPluginRegistry()->registerCreator(*creators[i], "csd"))
      std::fprintf(stderr, "libcsd_plugins_static.so: a csd plugin is registered already\n");
  return true;
}

[[maybe_unused]] bool const registered = register_all();

}  // namespace
