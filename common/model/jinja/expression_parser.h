// The expressions of the template language, by recursive descent with a bounded depth.
// For one thread. INVALID_ARGUMENT names the line.
#pragma once

#include "common/model/jinja/token_stream.h"

namespace trivium::model::jinja {

class ExpressionParser {
 public:
  using Result = absl::StatusOr<const Expr*>;

  explicit ExpressionParser(TokenStream& stream) : in_(stream) {}

  Result Parse();           // one expression, an inline `if` included
  Result ParseCondition();  // the same without an inline `if`
  // One expression or, with commas between, a tuple.
  Result ParseTuple(bool with_inline_if);
  // What can be assigned to: names, a tuple of them, or (where allowed) an attribute of a name.
  Result ParseTarget(bool allow_attribute, bool allow_tuple);
  // |a|b(c) onto `base`; with `first`, the first '|' has been read or is left out.
  Result ParseFilters(const Expr* base, bool first);
  absl::Status ParseArguments(Expr* call);  // from '(' to ')'

 private:
  // Of operators in a row, and of accesses and filters behind one value.
  static constexpr int kChainMax = 200;

  Result ParseChain(std::initializer_list<std::pair<std::string_view, Operator>> operators,
                    Result (ExpressionParser::*next)());
  Result ParseOr();
  Result ParseAnd();
  Result ParseNot();
  Result ParseComparison();
  Result ParseSum();
  Result ParseConcat();
  Result ParseProduct();
  Result ParsePower();
  Result ParseUnary();
  Result ParseSigned(bool with_filters);
  Result ParsePrimary();
  Result ParseName(const Token& token);
  Result ParseStrings();
  Result ParseParentheses();
  Result ParseList();
  Result ParseDict();
  Result ParsePostfix(const Expr* base);
  Result ParseSubscript(const Expr* base);
  Result ParseCall(const Expr* callee);
  Result ParsePostfixAndFilters(const Expr* base);
  Result ParseTest(const Expr* base);
  bool TakeComparison(Comparison* comparison);
  bool EndsTuple() const;

  TokenStream& in_;
};

}  // namespace trivium::model::jinja
