// What the two halves of the parser share: the tokens, the program that grows, names and errors.
// For one thread.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "common/model/jinja/ast.h"
#include "common/model/jinja/lexer.h"

namespace trivium::model::jinja {

class TokenStream {
 public:
  TokenStream(std::vector<Token> tokens, Program& program)
      : tokens_(std::move(tokens)), program_(program) {}

  const Token& Peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  Token Next() {
    const Token token = Peek();
    at_ = std::min(at_ + 1, tokens_.size() - 1);
    return token;
  }
  int line() const { return Peek().line; }
  bool SeesOperator(std::string_view text, size_t ahead = 0) const {
    return Peek(ahead).kind == TokenKind::kOperator && Equal(Peek(ahead).text, text);
  }
  bool SeesName(std::string_view text, size_t ahead = 0) const {
    return Peek(ahead).kind == TokenKind::kName && Equal(Peek(ahead).text, text);
  }
  bool TakeOperator(std::string_view text) { return SeesOperator(text) && (Next(), true); }
  bool TakeName(std::string_view text) { return SeesName(text) && (Next(), true); }
  absl::Status ExpectOperator(std::string_view text) {
    return TakeOperator(text) ? absl::OkStatus() : Fail("'{}' is missing", text);
  }
  absl::Status Expect(TokenKind kind, std::string_view what) {
    if (Peek().kind != kind) return Fail("{} is missing", what);
    Next();
    return absl::OkStatus();
  }

  template <typename... Args>
  absl::Status Fail(fmt::format_string<Args...> format, Args&&... args) const {
    return InvalidArgument("line {}: {}", line(), fmt::format(format, std::forward<Args>(args)...));
  }

  NameId Name(Text name) {
    const auto [found, added] =
        ids_.emplace(std::u32string(name), static_cast<NameId>(program_.names.size()));
    if (added) program_.names.push_back(program_.texts.emplace_back(name));
    return found->second;
  }
  Expr* NewExpr(ExprKind kind, std::vector<const Expr*> items = {}) {
    Expr& expr = program_.expressions.emplace_back();
    expr.kind = kind;
    expr.line = line();
    expr.items = std::move(items);
    return &expr;
  }
  Stmt* NewStmt(StmtKind kind) {
    Stmt& stmt = program_.statements.emplace_back();
    stmt.kind = kind;
    stmt.line = line();
    return &stmt;
  }
  Program& program() { return program_; }

  // Counts how deep the parser is; each level takes a bounded part of the stack.
  static constexpr int kDepthMax = 60;
  class Level {
   public:
    explicit Level(TokenStream& stream) : depth_(stream.depth_) { ++depth_; }
    ~Level() { --depth_; }
    bool TooDeep() const { return depth_ > kDepthMax; }

   private:
    int& depth_;
  };

  // Inside of a condition an unknown filter or test is an error only when it is reached.
  bool conditional = false;

 private:
  const std::vector<Token> tokens_;
  Program& program_;
  std::map<std::u32string, NameId> ids_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace trivium::model::jinja
