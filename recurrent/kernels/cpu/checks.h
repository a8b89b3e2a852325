// Checks of what XLA passes to a handler: buffers have any shape there.

#ifndef RECURRENT_KERNELS_CPU_CHECKS_H_
#define RECURRENT_KERNELS_CPU_CHECKS_H_

#include <algorithm>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <new>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace {

// Keeps the first thing that is wrong. Dtypes are XLA's to check, by the types
// of the handler's arguments.
class Checks {
 public:
  using Shape = std::initializer_list<int64_t>;

  explicit operator bool() const { return error_.empty(); }
  xla::ffi::Error Error() const {
    return xla::ffi::Error::InvalidArgument(error_);
  }

  // A buffer is of so many axes: to be asked before its sizes are read.
  template <class Buffer>
  Checks& Axes(const char* name, Buffer& buffer, size_t want) {
    auto got = Dimensions(buffer);
    if (error_.empty() && got.size() != want) {
      error_ = std::string(name) + " must have " + std::to_string(want) +
               (want == 1 ? " axis, got " : " axes, got ") + Text(got);
    }
    return *this;
  }

  // A buffer is of a shape, or [0], which stands for none, if it `may_lack`.
  template <class Buffer, class Want = Shape>
  Checks& Is(const char* name, Buffer& buffer, const Want& want,
             bool may_lack = false) {
    auto got = Dimensions(buffer);
    if (!error_.empty() || Same(got, want)) return *this;
    if (may_lack && Same(got, Shape{0})) return *this;
    error_ = std::string(name) + " must be " + Text(want) +
             (may_lack ? " or [0]" : "") + ", got " + Text(got);
    return *this;
  }

  template <class Buffer, class Want = Shape>
  Checks& May(const char* name, Buffer& buffer, const Want& want) {
    return Is(name, buffer, want, true);
  }

  // A buffer is of a shape if `there`, and else [0].
  template <class Buffer>
  Checks& If(bool there, const char* name, Buffer& buffer, Shape want) {
    return there ? Is(name, buffer, want) : Is(name, buffer, {0});
  }

  Checks& Range(const char* name, int64_t value, int64_t low, int64_t high) {
    if (error_.empty() && (value < low || value > high)) {
      error_ = std::string(name) + " must be from " + std::to_string(low) +
               " to " + std::to_string(high) + ", got " + std::to_string(value);
    }
    return *this;
  }

  template <class Sizes>
  static std::string Text(const Sizes& sizes) {
    std::string text;
    for (int64_t size : sizes) {
      text += (text.empty() ? "" : ", ") + std::to_string(size);
    }
    return "[" + text + "]";
  }

 private:
  template <class Buffer>
  static auto Dimensions(Buffer& buffer) -> decltype(buffer.dimensions()) {
    return buffer.dimensions();
  }
  template <class Result>
  static auto Dimensions(Result& result) -> decltype(result->dimensions()) {
    return result->dimensions();
  }

  template <class Got, class Want>
  static bool Same(const Got& got, const Want& want) {
    return got.size() == want.size() &&
           std::equal(got.begin(), got.end(), want.begin());
  }

  std::string error_;
};

// What a handler returns. No exception may leave it: XLA is compiled without.
template <class Run>
xla::ffi::Error Guarded(Run run) {
  try {
    return run();
  } catch (const std::bad_alloc&) {
    return xla::ffi::Error(xla::ffi::ErrorCode::kResourceExhausted,
                           "no memory left for what the loop works on");
  } catch (const std::exception& error) {
    return xla::ffi::Error::Internal(error.what());
  }
}

}  // namespace

#endif  // RECURRENT_KERNELS_CPU_CHECKS_H_
