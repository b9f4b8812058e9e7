// A second device for PyTorch whose memory is the CPU's: see README.md.
//
// One boxed function, `on_cpu`, runs every operator: it lends the device's memory to CPU tensors,
// calls the CPU's kernel, and hands the memory back. Nothing is copied. What it refuses is what a
// GPU refuses: operands on different devices.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <cstring>

namespace at::autocast { // of ATen/autocast_mode.h, which takes the compiler half a minute
TORCH_API at::ScalarType get_autocast_dtype(at::DeviceType device_type);
}

namespace {

using torch::jit::Stack;
const c10::Device DEVICE(c10::kPrivateUse1, 0);

// ---- memory -------------------------------------------------------------------------------------

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = c10::alloc_cpu(bytes);
    return {memory, memory, &c10::free_cpu, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &c10::free_cpu;
  }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    std::memcpy(target, source, bytes);
  }
};
Allocator allocator;
REGISTER_ALLOCATOR(c10::kPrivateUse1, &allocator);

// A storage of the other device over the same memory. `owner` lives as long as the new storage.
c10::Storage lend(const c10::Storage& owner, c10::Device device) {
  auto keep = new c10::Storage(owner);
  c10::DataPtr data(
      owner.mutable_data(), keep, [](void* kept) { delete static_cast<c10::Storage*>(kept); },
      device);
  return c10::Storage(
      c10::Storage::use_byte_size_t(), owner.nbytes(), std::move(data),
      c10::GetAllocator(device.type()), /*resizable=*/true);
}

// A tensor with the shape of `like` over `storage`.
at::Tensor over(c10::Storage storage, const at::Tensor& like) {
  const auto key =
      storage.device().is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::PrivateUse1;
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(key), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(
      like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

// ---- generators ---------------------------------------------------------------------------------

// The CPU's generator under the device's name, with a stream of numbers of its own.
struct Generator final : c10::GeneratorImpl {
  at::Generator cpu;

  explicit Generator(at::Generator numbers)
      : GeneratorImpl(DEVICE, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        cpu(std::move(numbers)) {}
  static c10::DeviceType device_type() {
    return c10::kPrivateUse1;
  }
  void set_current_seed(uint64_t seed) override {
    cpu.set_current_seed(seed);
  }
  void set_offset(uint64_t offset) override {
    cpu.set_offset(offset);
  }
  uint64_t get_offset() const override {
    return cpu.get_offset();
  }
  uint64_t current_seed() const override {
    return cpu.current_seed();
  }
  uint64_t seed() override {
    return cpu.seed();
  }
  void set_state(const c10::TensorImpl& state) override {
    cpu.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return cpu.unsafeGetGeneratorImpl()->get_state();
  }
  Generator* clone_impl() const override {
    return new Generator(cpu.clone());
  }
};

at::Generator new_generator() {
  return at::make_generator<Generator>(at::detail::createCPUGenerator());
}

const at::Generator& default_generator() {
  static const at::Generator generator = new_generator();
  return generator;
}

// ---- every operator -----------------------------------------------------------------------------

// Does a GPU take this argument from the CPU as well?
bool may_be_on_cpu(
    const c10::OperatorHandle& op, const std::string& argument, const at::Tensor& t) {
  const std::string& name = op.schema().name();
  if (argument == "indices" && name.find("index") != std::string::npos) {
    return true;
  }
  if (name == "aten::_pack_padded_sequence" && argument == "lengths") {
    return true;
  }
  static const std::vector<std::string> takes_numbers = {
      "aten::fill_", "aten::masked_fill", "aten::masked_fill_", "aten::index_fill",
      "aten::index_fill_", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_",
      "aten::floor_divide"};
  const bool elementwise =
      op.hasTag(at::Tag::pointwise) || name.find("_foreach_") != std::string::npos;
  const bool number = elementwise ||
      std::find(takes_numbers.begin(), takes_numbers.end(), name) != takes_numbers.end();
  return t.dim() == 0 && number;
}

// The arguments of one call, lent to the CPU.
struct Loan {
  c10::OperatorHandle op;
  std::vector<std::pair<c10::Storage, c10::Storage>> storages; // the device's, the CPU's
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors; // the device's, the CPU's

  c10::Storage storage_of(const c10::Storage& owner) {
    for (auto& [ours, theirs] : storages) {
      if (ours.unsafeGetStorageImpl() == owner.unsafeGetStorageImpl()) {
        return theirs;
      }
    }
    storages.emplace_back(owner, lend(owner, c10::kCPU));
    return storages.back().second;
  }

  at::Tensor tensor(const at::Tensor& argument, const std::string& name) {
    if (!argument.defined()) {
      return argument;
    }
    if (!argument.is_privateuseone()) {
      TORCH_CHECK(
          may_be_on_cpu(op, name, argument),
          "Expected all tensors to be on the same device, but found at least two devices, ", DEVICE,
          " and ", argument.device(), "! (argument ", name, " of ", op.schema().name(), ")");
      return argument;
    }
    TORCH_CHECK(
        argument.has_storage(), op.schema().name(), ": this device holds dense tensors alone");
    for (auto& [ours, theirs] : tensors) {
      if (ours.is_same(argument)) {
        return theirs;
      }
    }
    auto lent = over(storage_of(argument.storage()), argument);
    if (argument.unsafeGetTensorImpl()->is_wrapped_number()) {
      lent.unsafeGetTensorImpl()->set_wrapped_number(true);
    }
    tensors.emplace_back(argument, lent);
    return lent;
  }

  c10::IValue value(const c10::IValue& argument, const c10::Argument& about) {
    if (argument.isTensor()) {
      return tensor(argument.toTensor(), about.name());
    }
    if (argument.isStorage()) {
      const auto& storage = argument.toStorage();
      return storage.device_type() == c10::kPrivateUse1 ? storage_of(storage) : storage;
    }
    if (argument.isDevice()) {
      return argument.toDevice().is_privateuseone() ? c10::Device(c10::kCPU) : argument.toDevice();
    }
    if (argument.isGenerator()) {
      const auto& generator = argument.toGenerator();
      TORCH_CHECK(
          generator.device() == DEVICE, "Expected a '", DEVICE.type(),
          "' device type for generator but found '", generator.device(), "'");
      return at::check_generator<Generator>(generator)->cpu;
    }
    if (argument.isNone() && about.name() == "generator") {
      return at::check_generator<Generator>(default_generator())->cpu;
    }
    if (argument.isTensorList()) {
      c10::List<at::Tensor> lent;
      for (const at::Tensor& element : argument.toTensorList()) {
        lent.push_back(tensor(element, about.name()));
      }
      return lent;
    }
    if (argument.isList() &&
        argument.toList().elementType()->kind() == c10::TypeKind::OptionalType) {
      auto lent = c10::impl::GenericList(argument.toList().elementType());
      for (const c10::IValue& element : argument.toList()) {
        lent.push_back(value(element, about));
      }
      return lent;
    }
    return argument;
  }

  // The device's storage behind the CPU's: the one that was lent, or a new one around it.
  c10::Storage back(const c10::Storage& result) {
    for (auto& [ours, theirs] : storages) {
      if (theirs.unsafeGetStorageImpl() == result.unsafeGetStorageImpl()) {
        return ours;
      }
    }
    storages.emplace_back(lend(result, DEVICE), result);
    return storages.back().first;
  }

  at::Tensor back(const at::Tensor& result) {
    if (!result.defined() || !result.is_cpu()) {
      return result;
    }
    for (auto& [ours, theirs] : tensors) {
      if (theirs.is_same(result)) {
        return ours;
      }
    }
    return over(back(result.storage()), result);
  }

  // A kernel may have resized what it wrote to, or given it another storage.
  void settle() {
    for (size_t i = 0; i < tensors.size(); ++i) {
      const auto ours = tensors[i].first, theirs = tensors[i].second;
      const auto storage = back(theirs.storage());
      if (storage.data() != theirs.storage().data()) {
        storage.unsafeGetStorageImpl()->set_data_ptr(
            lend(theirs.storage(), DEVICE).unsafeGetStorageImpl()->set_data_ptr(c10::DataPtr()));
      }
      storage.unsafeGetStorageImpl()->set_nbytes(theirs.storage().nbytes());
      if (!ours.storage().is_alias_of(storage)) {
        ours.unsafeGetTensorImpl()->set_storage_keep_dtype(storage);
      }
      if (ours.sizes() != theirs.sizes() || ours.strides() != theirs.strides() ||
          ours.storage_offset() != theirs.storage_offset()) {
        ours.unsafeGetTensorImpl()->set_sizes_and_strides(
            theirs.sizes(), theirs.strides(), theirs.storage_offset());
      }
    }
  }
};

// Calls `op` with the CPU's tensors. `kernel` stands for it where the CPU has another name for it.
void run(const c10::OperatorHandle& op, const c10::OperatorHandle& kernel, Stack* stack) {
  Loan loan{op, {}, {}};
  const auto& about = op.schema().arguments();
  const size_t first = stack->size() - about.size();
  for (size_t i = 0; i < about.size(); ++i) {
    (*stack)[first + i] = loan.value((*stack)[first + i], about[i]);
  }
  kernel.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  loan.settle();
  for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); ++i) {
    c10::IValue& result = (*stack)[i];
    if (result.isTensor()) {
      result = loan.back(result.toTensor());
    } else if (result.isTensorList()) {
      c10::List<at::Tensor> ours;
      for (const at::Tensor& element : result.toTensorList()) {
        ours.push_back(loan.back(element));
      }
      result = std::move(ours);
    }
  }
}

void on_cpu(const c10::OperatorHandle& op, Stack* stack) {
  run(op, op, stack);
}

// The one operator that crosses from device to device.
at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool) {
  auto on_host = [](const at::Tensor& t) {
    return t.is_privateuseone() ? over(lend(t.storage(), c10::kCPU), t) : t;
  };
  on_host(target).copy_(on_host(source));
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& target) {
  target.resize_(source.sizes());
  return copy_from(source, target, false);
}

// Convolution asks a device of its own for operators with other names than the CPU's.
c10::OperatorHandle named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
}

void convolution(const c10::OperatorHandle& op, Stack* stack) {
  static const auto cpu = named("aten::convolution");
  run(op, cpu, stack);
}

// The CPU's backward pass is also told the size of the bias, behind the weight.
void convolution_backward(const c10::OperatorHandle&, Stack* stack) {
  static const auto cpu = named("aten::convolution_backward");
  const auto of_output = (stack->end() - 10)->toTensor();
  stack->insert(stack->end() - 7, c10::List<int64_t>({of_output.size(1)}));
  run(cpu, cpu, stack);
}

// ---- autocast -----------------------------------------------------------------------------------

// Calls `op` with its floating tensors cast to `type`, outside autocast.
void in_type(c10::ScalarType type, const c10::OperatorHandle& op, Stack* stack) {
  c10::impl::ExcludeDispatchKeyGuard outside(c10::DispatchKey::AutocastPrivateUse1);
  auto cast = [type](const at::Tensor& t) {
    const bool ours = t.defined() && t.is_privateuseone() && t.is_floating_point();
    return ours && t.scalar_type() != at::kDouble ? t.to(type) : t;
  };
  for (size_t i = stack->size() - op.schema().arguments().size(); i < stack->size(); ++i) {
    c10::IValue& argument = (*stack)[i];
    if (argument.isTensor()) {
      argument = cast(argument.toTensor());
    } else if (argument.isTensorList()) {
      c10::List<at::Tensor> all;
      for (const at::Tensor& element : argument.toTensorList()) {
        all.push_back(cast(element));
      }
      argument = std::move(all);
    }
  }
  op.callBoxed(stack);
}

void in_lower_precision(const c10::OperatorHandle& op, Stack* stack) {
  in_type(at::autocast::get_autocast_dtype(c10::kPrivateUse1), op, stack);
}

void in_float32(const c10::OperatorHandle& op, Stack* stack) {
  in_type(at::kFloat, op, stack);
}

// ---- registration -------------------------------------------------------------------------------

// One device, number 0; nothing runs beside the host, so there is nothing to wait for.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::kPrivateUse1> {
  c10::Device exchangeDevice(c10::Device) const override {
    return DEVICE;
  }
  c10::Device getDevice() const override {
    return DEVICE;
  }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, DEVICE);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return getStream(device);
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    return getStream(device);
  }
  c10::Stream exchangeStream(c10::Stream) const noexcept override {
    return getStream(DEVICE);
  }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag)
      const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override {
    return true;
  }
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override {
    return true;
  }
  c10::DeviceIndex deviceCount() const override {
    return 1;
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return 0;
  }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override {
    return 0;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override {
    return 0;
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return default_generator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return new_generator();
  }
  at::Device getDeviceFromPtr(void*) const override {
    return DEVICE;
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto memory = allocator.allocate(bytes);
    std::memcpy(memory.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(memory));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};
const bool registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl(
      "convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution>());
  m.impl(
      "convolution_backward_overrideable",
      torch::CppFunction::makeFromBoxedFunction<&convolution_backward>());
}

// The Python module hands over the names of the operators that autocast changes.
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

using Names = c10::List<std::string>;

void register_autocast(const Names& lower, const Names& float32) {
  static torch::Library aten(
      torch::Library::IMPL, "aten", c10::DispatchKey::AutocastPrivateUse1, __FILE__, __LINE__);
  for (const std::string& name : lower) {
    aten.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&in_lower_precision>());
  }
  for (const std::string& name : float32) {
    aten.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&in_float32>());
  }
}

TORCH_LIBRARY(second_device, m) {
  m.def("register_autocast(str[] lower, str[] float32) -> ()", &register_autocast);
  m.def("manual_seed(int seed) -> ()", [](int64_t seed) {
    auto generator = default_generator();
    generator.set_current_seed(seed);
  });
  m.def("get_rng_state() -> Tensor", [] { return default_generator().get_state(); });
  m.def("set_rng_state(Tensor state) -> ()", [](const at::Tensor& state) {
    auto generator = default_generator();
    generator.set_state(state);
  });
}

} // namespace
