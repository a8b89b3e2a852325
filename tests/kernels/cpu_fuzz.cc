// Calls a handler as XLA does, but with buffers of exactly their size and of
// any
// shape, zero sizes too: an address sanitizer sees each byte beside them.

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "xla/ffi/api/c_api.h"

namespace {

std::string message;

XLA_FFI_Error* Create(XLA_FFI_Error_Create_Args* args) {
  message = args->message;
  return reinterpret_cast<XLA_FFI_Error*>(&message);
}

}  // namespace

// Buffers are the arguments and then the results; their dims stand one after
// another. All attributes are 64-bit integers, but one that is a truth value.
// Returns what the handler says; empty if it worked.
extern "C" const char* call_handler(
    XLA_FFI_Handler* handler, int64_t arguments, int64_t results,
    const int64_t* dtypes, const int64_t* ranks, int64_t* dims,
    const int64_t* bytes, int64_t attributes, const char* const* names,
    int64_t* values) {
  std::vector<XLA_FFI_Buffer> buffers(arguments + results);
  std::vector<void*> pointers;
  unsigned seed = 1;
  for (size_t i = 0; i < buffers.size(); ++i) {
    void* data = nullptr;
    if (posix_memalign(&data, 64, bytes[i])) abort();
    for (int64_t at = 0; at < bytes[i]; ++at) {
      seed = seed * 1103515245 + 12345;
      const unsigned char byte = seed >> 16 & 0x3f;  // a small number
      static_cast<unsigned char*>(data)[at] =
          dtypes[i] == XLA_FFI_DataType_PRED ? byte & 1 : byte;
    }
    buffers[i] = {XLA_FFI_Buffer_STRUCT_SIZE,
                  nullptr,
                  static_cast<XLA_FFI_DataType>(dtypes[i]),
                  data,
                  ranks[i],
                  dims};
    dims += ranks[i];
    pointers.push_back(&buffers[i]);
  }
  std::vector<XLA_FFI_ArgType> argument_types(arguments,
                                              XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> result_types(results, XLA_FFI_RetType_BUFFER);
  std::vector<XLA_FFI_AttrType> attribute_types(attributes,
                                                XLA_FFI_AttrType_SCALAR);
  std::vector<XLA_FFI_ByteSpan> spans;
  std::vector<XLA_FFI_Scalar> scalars;
  for (int64_t i = 0; i < attributes; ++i) {
    const std::string name = names[i];
    spans.push_back({names[i], name.size()});
    scalars.push_back(
        {name == "reverse" ? XLA_FFI_DataType_PRED : XLA_FFI_DataType_S64,
         &values[i]});
  }
  std::vector<XLA_FFI_ByteSpan*> span_pointers;
  std::vector<void*> scalar_pointers;
  for (int64_t i = 0; i < attributes; ++i) {
    span_pointers.push_back(&spans[i]);
    scalar_pointers.push_back(&scalars[i]);
  }
  XLA_FFI_Api api = {};
  api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
  api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr,
                     XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
  api.XLA_FFI_Error_Create = Create;
  XLA_FFI_CallFrame frame = {};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &api;
  frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, arguments,
                argument_types.data(), pointers.data()};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, results,
                result_types.data(), pointers.data() + arguments};
  frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE, nullptr,          attributes,
                 attribute_types.data(),    span_pointers.data(),
                 scalar_pointers.data()};
  message.clear();
  handler(&frame);
  for (XLA_FFI_Buffer& buffer : buffers) free(buffer.data);
  return message.c_str();
}
