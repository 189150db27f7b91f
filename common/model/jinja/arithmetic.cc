#include <cmath>

#include "common/model/jinja/operators.h"

namespace trivium::model::jinja {
namespace {

absl::Status TooLarge() { return InvalidArgument("an integer does not fit into 64 bits"); }
absl::Status DividedByZero() { return InvalidArgument("division by zero"); }

absl::StatusOr<Value> IntegerPower(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) return DividedByZero();
    return Float(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  if (base == 0 || base == 1) return Int(exponent == 0 ? 1 : base);
  if (base == -1) return Int(exponent % 2 == 0 ? 1 : -1);
  int64_t result = 1;
  for (int64_t i = 0; i < exponent; ++i) {  // at most 63 turns until it is too large
    if (__builtin_mul_overflow(result, base, &result)) return TooLarge();
  }
  return Int(result);
}

// Python rounds quotients down; remainders have the divisor's sign.
absl::StatusOr<Value> IntegerDivision(Operator op, int64_t a, int64_t b) {
  if (b == 0) return DividedByZero();
  if (b == -1) {
    int64_t negated = 0;
    if (op == Operator::kModulo) return Int(0);
    if (__builtin_sub_overflow(int64_t{0}, a, &negated)) return TooLarge();
    return Int(negated);
  }
  const int64_t remainder = a % b;
  const bool adjusts = remainder != 0 && (remainder < 0) != (b < 0);
  if (op == Operator::kModulo) return Int(adjusts ? remainder + b : remainder);
  return Int(a / b - (adjusts ? 1 : 0));
}

absl::StatusOr<Value> Integers(Operator op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case Operator::kAdd:
      if (__builtin_add_overflow(a, b, &result)) return TooLarge();
      return Int(result);
    case Operator::kSubtract:
      if (__builtin_sub_overflow(a, b, &result)) return TooLarge();
      return Int(result);
    case Operator::kMultiply:
      if (__builtin_mul_overflow(a, b, &result)) return TooLarge();
      return Int(result);
    case Operator::kDivide:
      if (b == 0) return DividedByZero();
      return Float(static_cast<double>(a) / static_cast<double>(b));
    case Operator::kPower:
      return IntegerPower(a, b);
    default:
      return IntegerDivision(op, a, b);
  }
}

absl::StatusOr<Value> Floats(Operator op, double a, double b) {
  switch (op) {
    case Operator::kAdd:
      return Float(a + b);
    case Operator::kSubtract:
      return Float(a - b);
    case Operator::kMultiply:
      return Float(a * b);
    case Operator::kPower: {
      const double power = std::pow(a, b);
      if (!std::isfinite(power) && std::isfinite(a) && std::isfinite(b)) {
        return InvalidArgument("a power has no finite real value");
      }
      return Float(power);
    }
    default:
      break;
  }
  if (b == 0) return DividedByZero();
  if (op == Operator::kDivide) return Float(a / b);
  double remainder = std::fmod(a, b);
  if (remainder != 0 && (remainder < 0) != (b < 0)) remainder += b;
  if (op == Operator::kModulo) return Float(remainder == 0 ? std::copysign(0.0, b) : remainder);
  return Float(std::round((a - remainder) / b));
}

}  // namespace

absl::StatusOr<Value> ComputeNumbers(Operator op, const Value& a, const Value& b) {
  if (a.IsInteger() && b.IsInteger()) return Integers(op, a.AsInteger(), b.AsInteger());
  return Floats(op, a.AsNumber(), b.AsNumber());
}

absl::StatusOr<Value> Negate(const Value& value) {
  if (value.IsUndefined()) return UndefinedError(value);
  if (value.IsInteger()) return Integers(Operator::kSubtract, 0, value.AsInteger());
  if (value.kind == Kind::kFloat) return Float(-value.number);
  return InvalidArgument("{} cannot be negated", TypeName(value));
}

}  // namespace trivium::model::jinja
