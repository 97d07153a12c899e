// Columns, dimensions and plans of a program. See columns.h.
#include "columns.h"

#include <algorithm>
#include <limits>

#include "program.h"

namespace galley {
namespace {

void check_dtype(const std::string& name, const std::string& has, const std::string& wants) {
  if (has != wants) {
    throw std::invalid_argument("column " + name + " has the dtype " + has + ", not " + wants);
  }
}

}  // namespace

void Columns::bind(const std::string& name, const std::string& dtype, const void* data,
                   int64_t stride) {
  if (stride <= 0) {
    throw std::invalid_argument("the stride of column " + name + " must be positive");
  }
  auto known = columns_.find(name);
  if (known != columns_.end()) check_dtype(name, known->second.dtype, dtype);
  Column& column = columns_[name];
  column.dtype = dtype;
  column.data = data;
  column.stride = stride;
}

void Columns::unbind(const std::string& name) {
  auto known = columns_.find(name);
  if (known == columns_.end()) throw std::invalid_argument("no column is named " + name);
  known->second.data = nullptr;
}

const Column* Columns::find(const std::string& name, const std::string& dtype,
                            bool must_be_bound) {
  auto known = columns_.find(name);
  if (must_be_bound && (known == columns_.end() || known->second.data == nullptr)) {
    throw std::invalid_argument("no column is named " + name);
  }
  if (known != columns_.end()) check_dtype(name, known->second.dtype, dtype);
  Column& column = columns_[name];
  column.dtype = dtype;
  column.is_read = true;
  return &column;
}

int32_t Dimensions::add(const std::string& name, int64_t limit) {
  if (std::find(names_.begin(), names_.end(), name) != names_.end()) {
    throw std::invalid_argument("dimension " + name + " exists already");
  }
  if (limit < 0 || limit > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("the limit of " + name + " is out of range");
  }
  names_.push_back(name);
  limits_.push_back(limit);
  sizes_.push_back(0);
  return static_cast<int32_t>(names_.size()) - 1;
}

int32_t Dimensions::index(const std::string& name) const {
  const auto place = std::find(names_.begin(), names_.end(), name);
  if (place == names_.end()) throw std::invalid_argument("no dimension is named " + name);
  return static_cast<int32_t>(place - names_.begin());
}

void Dimensions::set(int32_t index, int64_t size) {
  if (size < 0 || size > limits_[index]) {
    throw std::invalid_argument("a step of " + std::to_string(size) + " " + names_[index] +
                                ": the program was built for " + std::to_string(limits_[index]));
  }
  sizes_[index] = static_cast<int32_t>(size);
}

std::map<std::string, int64_t> Dimensions::by_name() const {
  std::map<std::string, int64_t> sizes;
  for (size_t i = 0; i < names_.size(); i++) sizes[names_[i]] = sizes_[i];
  return sizes;
}

void Plan::make_once(const Step& step, int threads) {
  if (made_for_ == step.number) return;
  make(step, threads);
  made_for_ = step.number;
}

}  // namespace galley
