#include "common/model/jinja/expression_parser.h"

#include <algorithm>

namespace trivium::model::jinja {

ExpressionParser::Result ExpressionParser::Parse() {
  const TokenStream::Level level(in_);
  if (level.TooDeep()) return in_.Fail("expressions are nested too deeply");
  ASSIGN_OR_RETURN(const Expr* value, ParseOr());
  for (int i = 0; in_.SeesName("if"); ++i) {
    if (i == kChainMax) return in_.Fail("too many inline ifs");
    in_.Next();
    const bool outer = std::exchange(in_.conditional, true);
    ASSIGN_OR_RETURN(const Expr* condition, ParseOr());
    const Expr* otherwise = nullptr;
    if (in_.TakeName("else")) {
      ASSIGN_OR_RETURN(otherwise, Parse());
    }
    in_.conditional = outer;
    value = in_.NewExpr(ExprKind::kConditional, {value, condition, otherwise});
  }
  return value;
}

ExpressionParser::Result ExpressionParser::ParseCondition() { return ParseOr(); }

bool ExpressionParser::EndsTuple() const {
  const TokenKind kind = in_.Peek().kind;
  return kind == TokenKind::kVariableEnd || kind == TokenKind::kBlockEnd || in_.SeesOperator(")") ||
         in_.SeesName("in") || in_.SeesName("recursive");
}

ExpressionParser::Result ExpressionParser::ParseTuple(bool with_inline_if) {
  std::vector<const Expr*> items;
  bool comma = false;
  while (!EndsTuple()) {
    ASSIGN_OR_RETURN(const Expr* item, with_inline_if ? Parse() : ParseCondition());
    items.push_back(item);
    comma = in_.TakeOperator(",");
    if (!comma) break;
    if (items.size() > kChainMax * 10) return in_.Fail("a tuple is too long");
  }
  if (items.empty()) return in_.Fail("an expression is missing");
  if (items.size() == 1 && !comma) return items[0];
  return in_.NewExpr(ExprKind::kTuple, std::move(items));
}

ExpressionParser::Result ExpressionParser::ParseTarget(bool allow_attribute, bool allow_tuple) {
  std::vector<const Expr*> names;
  const bool parentheses = allow_tuple && in_.TakeOperator("(");
  bool comma = false;
  do {
    if (in_.Peek().kind != TokenKind::kName || in_.SeesName("in")) {
      if (comma) break;
      return in_.Fail("a name to assign to is missing");
    }
    const Text text = in_.Next().text;
    for (const std::string_view fixed : {"true", "false", "none", "True", "False", "None"}) {
      if (Equal(text, fixed)) return in_.Fail("'{}' cannot be assigned to", fixed);
    }
    Expr* name = in_.NewExpr(ExprKind::kName);
    name->id = in_.Name(text);
    name->name = text;
    names.push_back(name);
    if (allow_attribute && names.size() == 1 && in_.TakeOperator(".")) {
      Expr* attribute = in_.NewExpr(ExprKind::kAttribute, {name});
      attribute->name = in_.Peek().text;
      RETURN_IF_ERROR(in_.Expect(TokenKind::kName, "an attribute's name"));
      return attribute;
    }
    comma = allow_tuple && in_.TakeOperator(",");
  } while (comma);
  if (parentheses) RETURN_IF_ERROR(in_.ExpectOperator(")"));
  if (names.size() == 1 && !comma) return names[0];
  return in_.NewExpr(ExprKind::kTuple, std::move(names));
}

ExpressionParser::Result ExpressionParser::ParseOr() {
  ASSIGN_OR_RETURN(const Expr* left, ParseAnd());
  for (int i = 0; in_.TakeName("or"); ++i) {
    if (i == kChainMax) return in_.Fail("an expression is too long");
    ASSIGN_OR_RETURN(const Expr* right, ParseAnd());
    left = in_.NewExpr(ExprKind::kOr, {left, right});
  }
  return left;
}

ExpressionParser::Result ExpressionParser::ParseAnd() {
  ASSIGN_OR_RETURN(const Expr* left, ParseNot());
  for (int i = 0; in_.TakeName("and"); ++i) {
    if (i == kChainMax) return in_.Fail("an expression is too long");
    ASSIGN_OR_RETURN(const Expr* right, ParseNot());
    left = in_.NewExpr(ExprKind::kAnd, {left, right});
  }
  return left;
}

ExpressionParser::Result ExpressionParser::ParseNot() {
  if (!in_.TakeName("not")) return ParseComparison();
  const TokenStream::Level level(in_);
  if (level.TooDeep()) return in_.Fail("expressions are nested too deeply");
  ASSIGN_OR_RETURN(const Expr* value, ParseNot());
  return in_.NewExpr(ExprKind::kNot, {value});
}

bool ExpressionParser::TakeComparison(Comparison* comparison) {
  static constexpr std::pair<std::string_view, Comparison> kOperators[] = {
      {"==", Comparison::kEqual},  {"!=", Comparison::kNotEqual},
      {"<", Comparison::kLess},    {"<=", Comparison::kLessEqual},
      {">", Comparison::kGreater}, {">=", Comparison::kGreaterEqual},
  };
  for (const auto& [text, value] : kOperators) {
    *comparison = value;
    if (in_.TakeOperator(text)) return true;
  }
  *comparison = Comparison::kIn;
  if (in_.TakeName("in")) return true;
  *comparison = Comparison::kNotIn;
  if (!in_.SeesName("not") || !in_.SeesName("in", 1)) return false;
  in_.Next();
  in_.Next();
  return true;
}

ExpressionParser::Result ExpressionParser::ParseComparison() {
  ASSIGN_OR_RETURN(const Expr* first, ParseSum());
  Comparison comparison{};
  if (!TakeComparison(&comparison)) return first;
  Expr* chain = in_.NewExpr(ExprKind::kCompare, {first});
  do {
    ASSIGN_OR_RETURN(const Expr* operand, ParseSum());
    chain->items.push_back(operand);
    chain->comparisons.push_back(comparison);
  } while (TakeComparison(&comparison));
  return chain;
}

ExpressionParser::Result ExpressionParser::ParseChain(
    std::initializer_list<std::pair<std::string_view, Operator>> operators,
    Result (ExpressionParser::*next)()) {
  ASSIGN_OR_RETURN(const Expr* left, (this->*next)());
  for (int i = 0;; ++i) {
    const auto found = std::find_if(operators.begin(), operators.end(),
                                    [this](const auto& op) { return in_.SeesOperator(op.first); });
    if (found == operators.end()) return left;
    if (i == kChainMax) return in_.Fail("an expression is too long");
    in_.Next();
    ASSIGN_OR_RETURN(const Expr* right, (this->*next)());
    Expr* both = in_.NewExpr(ExprKind::kBinary, {left, right});
    both->op = found->second;
    left = both;
  }
}

ExpressionParser::Result ExpressionParser::ParseSum() {
  return ParseChain({{"+", Operator::kAdd}, {"-", Operator::kSubtract}},
                    &ExpressionParser::ParseConcat);
}

ExpressionParser::Result ExpressionParser::ParseConcat() {
  ASSIGN_OR_RETURN(const Expr* first, ParseProduct());
  if (!in_.SeesOperator("~")) return first;
  Expr* all = in_.NewExpr(ExprKind::kConcat, {first});
  while (in_.TakeOperator("~")) {
    ASSIGN_OR_RETURN(const Expr* next, ParseProduct());
    all->items.push_back(next);
  }
  return all;
}

ExpressionParser::Result ExpressionParser::ParseProduct() {
  return ParseChain({{"*", Operator::kMultiply},
                     {"/", Operator::kDivide},
                     {"//", Operator::kFloorDivide},
                     {"%", Operator::kModulo}},
                    &ExpressionParser::ParsePower);
}

ExpressionParser::Result ExpressionParser::ParsePower() {
  return ParseChain({{"**", Operator::kPower}}, &ExpressionParser::ParseUnary);
}

ExpressionParser::Result ExpressionParser::ParseUnary() { return ParseSigned(true); }

ExpressionParser::Result ExpressionParser::ParseSigned(bool with_filters) {
  const TokenStream::Level level(in_);
  if (level.TooDeep()) return in_.Fail("expressions are nested too deeply");
  const bool minus = in_.TakeOperator("-");
  const Expr* value = nullptr;
  if (minus || in_.TakeOperator("+")) {
    ASSIGN_OR_RETURN(const Expr* operand, ParseSigned(false));
    value = in_.NewExpr(minus ? ExprKind::kNegate : ExprKind::kPositive, {operand});
  } else {
    ASSIGN_OR_RETURN(value, ParsePrimary());
  }
  ASSIGN_OR_RETURN(value, ParsePostfix(value));
  return with_filters ? ParsePostfixAndFilters(value) : value;
}

}  // namespace trivium::model::jinja
