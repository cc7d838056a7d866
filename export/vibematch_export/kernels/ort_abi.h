// The few parts of ONNX Runtime's C interface that the kernels use, declared by hand: its Python
// wheel brings no headers. The interface is append-only, so positions and layouts stay true for
// every runtime that answers to API_VERSION.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t API_VERSION = 17;  // the first with KernelContext_ParallelFor

struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;

enum ErrorCode : int { FAIL = 1, INVALID_ARGUMENT = 2, NOT_IMPLEMENTED = 9 };
enum ElementType : int { FLOAT = 1, INT8 = 3 };

// The runtime's functions: a table of pointers, called by position.
struct Api {
  void (*functions[275])();

  template <class Signature>
  Signature* at(size_t position) const {
    return reinterpret_cast<Signature*>(functions[position]);
  }

  Status* create_status(ErrorCode code, const char* message) const {
    return at<Status*(ErrorCode, const char*)>(0)(code, message);
  }
  Status* create_domain(const char* name, CustomOpDomain** out) const {
    return at<Status*(const char*, CustomOpDomain**)>(26)(name, out);
  }
  Status* add_operator(CustomOpDomain* domain, const struct CustomOp* op) const {
    return at<Status*(CustomOpDomain*, const struct CustomOp*)>(27)(domain, op);
  }
  Status* add_domain(SessionOptions* options, CustomOpDomain* domain) const {
    return at<Status*(SessionOptions*, CustomOpDomain*)>(28)(options, domain);
  }
  Status* tensor_data(Value* value, void** out) const {
    return at<Status*(Value*, void**)>(51)(value, out);
  }
  Status* dimension_count(const TensorInfo* info, size_t* out) const {
    return at<Status*(const TensorInfo*, size_t*)>(61)(info, out);
  }
  Status* dimensions(const TensorInfo* info, int64_t* out, size_t count) const {
    return at<Status*(const TensorInfo*, int64_t*, size_t)>(62)(info, out, count);
  }
  Status* tensor_info(const Value* value, TensorInfo** out) const {
    return at<Status*(const Value*, TensorInfo**)>(65)(value, out);
  }
  Status* attribute(const KernelInfo* info, const char* name, float* out) const {
    return at<Status*(const KernelInfo*, const char*, float*)>(85)(info, name, out);
  }
  Status* attribute(const KernelInfo* info, const char* name, int64_t* out) const {
    return at<Status*(const KernelInfo*, const char*, int64_t*)>(86)(info, name, out);
  }
  Status* input(const KernelContext* context, size_t index, const Value** out) const {
    return at<Status*(const KernelContext*, size_t, const Value**)>(90)(context, index, out);
  }
  Status* output(KernelContext* context, size_t index, const int64_t* dims, size_t count,
                 Value** out) const {
    return at<Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)>(91)(
        context, index, dims, count, out);
  }
  void release_status(Status* status) const { at<void(Status*)>(93)(status); }
  void release_tensor_info(TensorInfo* info) const { at<void(TensorInfo*)>(99)(info); }
  Status* constant_input(const KernelInfo* info, size_t index, int* constant,
                         const Value** out) const {
    return at<Status*(const KernelInfo*, size_t, int*, const Value**)>(249)(info, index, constant,
                                                                           out);
  }
  // Calls `body(data, i)` for each i < count; `batches` of them are shared out dynamically.
  Status* parallel_for(const KernelContext* context, void (*body)(void*, size_t), size_t count,
                       size_t batches, void* data) const {
    return at<Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>(274)(
        context, body, count, batches, data);
  }
};

struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*version_string)();
};

// An operator's schema and callbacks, in the runtime's layout; callbacks left null are optional.
struct CustomOp {
  uint32_t version = API_VERSION;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*) = nullptr;
  const char* (*name)(const CustomOp*) = nullptr;
  const char* (*execution_provider)(const CustomOp*) = nullptr;
  ElementType (*input_type)(const CustomOp*, size_t) = nullptr;
  size_t (*input_count)(const CustomOp*) = nullptr;
  ElementType (*output_type)(const CustomOp*, size_t) = nullptr;
  size_t (*output_count)(const CustomOp*) = nullptr;
  void (*compute)(void*, KernelContext*) = nullptr;
  void (*destroy)(void*) = nullptr;
  int (*input_characteristic)(const CustomOp*, size_t) = nullptr;
  int (*output_characteristic)(const CustomOp*, size_t) = nullptr;
  int (*input_memory)(const CustomOp*, size_t) = nullptr;
  int (*variadic_input_minimum)(const CustomOp*) = nullptr;
  int (*variadic_input_homogeneous)(const CustomOp*) = nullptr;
  int (*variadic_output_minimum)(const CustomOp*) = nullptr;
  int (*variadic_output_homogeneous)(const CustomOp*) = nullptr;
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**) = nullptr;
  Status* (*compute_v2)(void*, KernelContext*) = nullptr;
  Status* (*infer_shape)(const CustomOp*, void*) = nullptr;
  int (*start_version)(const CustomOp*) = nullptr;
  int (*end_version)(const CustomOp*) = nullptr;
  void* reserved[4] = {};  // in-place and alias maps, newer than API_VERSION
};

}  // namespace ort
