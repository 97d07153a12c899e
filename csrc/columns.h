// Named columns, dimensions and plans: how the ops of one program see a step.
//
// Python binds an array under a name (Program::bind); an op asks for it by that name when it is
// made (Args::column). The index of a column (slot, token, logit row) is agreed between the
// two: a new column needs no change here.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace galley {

// An array that describes a step. Its contents may differ from step to step.
struct Column {
  std::string dtype;           // as in numpy: i4, u8 ...
  const void* data = nullptr;  // null = not bound
  int64_t stride = 1;          // elements from row to row
  bool is_read = false;        // by an op
};

template <class T> const char* dtype_of();
template <> inline const char* dtype_of<int32_t>() { return "i4"; }
template <> inline const char* dtype_of<uint8_t>() { return "u1"; }
template <> inline const char* dtype_of<uint64_t>() { return "u8"; }
template <> inline const char* dtype_of<float>() { return "f4"; }

// A column as an op reads it.
template <class T> class ColumnOf {
 public:
  ColumnOf() = default;
  explicit ColumnOf(const Column* column) : column_(column) {}
  explicit operator bool() const { return column_->data != nullptr; }
  bool operator==(const ColumnOf& other) const { return column_ == other.column_; }
  const T* row(int64_t i) const {
    return static_cast<const T*>(column_->data) + i * column_->stride;
  }
  const T& operator[](int64_t i) const { return *row(i); }
  // The value of row i, or `otherwise` where the column is not bound.
  T get(int64_t i, T otherwise) const { return *this ? *row(i) : otherwise; }
  int64_t stride() const { return column_->stride; }

 private:
  const Column* column_ = nullptr;
};

class Columns {
 public:
  // Throws std::invalid_argument where the column has another dtype already.
  void bind(const std::string& name, const std::string& dtype, const void* data, int64_t stride);
  void unbind(const std::string& name);
  // Throws std::invalid_argument where there is no such column, or it has another dtype.
  template <class T> ColumnOf<T> get(const std::string& name) {
    return ColumnOf<T>(find(name, dtype_of<T>(), true));
  }
  // A column that may be bound later, or never.
  template <class T> ColumnOf<T> get_optional(const std::string& name) {
    return ColumnOf<T>(find(name, dtype_of<T>(), false));
  }
  const std::map<std::string, Column>& all() const { return columns_; }

 private:
  const Column* find(const std::string& name, const std::string& dtype, bool must_be_bound);
  std::map<std::string, Column> columns_;  // its entries stay where they are
};

// Dimensions that every program has, in this order; a program may have more.
constexpr int32_t kTokens = 0, kSequences = 1, kLogits = 2;

// The number of rows of a value: the size of a named dimension, times a constant (of tokens with
// top-k experts each, say).
struct Dim {
  int32_t base = 0;  // index into Step::sizes
  int64_t times = 1;
};

// Dimensions whose size differs from step to step, and the most that buffers have room for.
class Dimensions {
 public:
  // The index of the new dimension.
  int32_t add(const std::string& name, int64_t limit);
  int32_t index(const std::string& name) const;  // throws std::invalid_argument where it is unknown
  // Throws std::invalid_argument where the size is beyond the limit.
  void set(int32_t index, int64_t size);
  const int32_t* sizes() const { return sizes_.data(); }
  int64_t limit(int32_t index) const { return limits_[index]; }
  std::map<std::string, int64_t> by_name() const;

 private:
  std::vector<std::string> names_;
  std::vector<int64_t> limits_;
  std::vector<int32_t> sizes_;
};

struct Step;

// How the work of a step is divided; made once a step and shared by the ops with the same geometry.
class Plan {
 public:
  virtual ~Plan() = default;
  void make_once(const Step& step, int threads);

 protected:
  virtual void make(const Step& step, int threads) = 0;

 private:
  int64_t made_for_ = -1;
};

class Plans {
 public:
  // The plan of this type and geometry. A plan type P has a type P::Geometry with operator== and a
  // constructor from it.
  template <class P> P* get(const typename P::Geometry& geometry) {
    for (const auto& plan : plans_) {
      auto* same = dynamic_cast<P*>(plan.get());
      if (same && same->geometry() == geometry) return same;
    }
    plans_.push_back(std::make_unique<P>(geometry));
    return static_cast<P*>(plans_.back().get());
  }

 private:
  std::vector<std::unique_ptr<Plan>> plans_;
};

// Shared by the ops of one program.
struct Environment {
  Columns columns;
  Dimensions dimensions;
  Plans plans;
};

}  // namespace galley
