// Test support: prompts tokenised as the router does, with the tiny model, and a configuration made
// whole. Thread-safety: as its parts.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/config/config.h"
#include "services/router/api/backend.h"
#include "services/router/dispatch/dispatch_fixture.h"
#include "services/router/tenancy/domains.h"
#include "services/router/tenancy/tenants.h"

namespace trivium::router {

struct TinyValidator {
  Tokenize tokenize() const {
    return [this](const v1::TokenizeRequest& request) { return validator.Tokenize(request); };
  }
  std::vector<int32_t> TextTokens(const std::string& text) const {
    v1::TokenizeRequest request;
    request.set_text(text);
    return *validator.Tokenize(request);
  }
  std::string Text(const std::vector<int32_t>& tokens) const {
    std::string text;
    for (const int32_t id : tokens) text += TinyModel()->tokenizer->Piece(id, true);
    return text;
  }

  RequestValidator validator{TinyModel(), 16};
};

// What a router makes of `text` as the part "tenancy" of its configuration.
struct TenancyFixture : TinyValidator {
  explicit TenancyFixture(const std::string& text = "")
      : config(Complete(text)), tenants(config), domains(*Domains::Create(config, tokenize())) {}

  static v1::TenancyConfig Complete(const std::string& text) {
    v1::TenancyConfig config;
    absl::Status status = config::ParseYamlInto(text, "tenancy.yaml", &config);
    if (status.ok()) status = config::Complete(&config);
    TRIVIUM_CHECK(status.ok(), "{}", Message(status));
    return config;
  }

  Backend BackendOf(DispatchFixture* fixture, TaskPool* tasks) const {
    return {&validator, &tenants, &domains, &fixture->dispatcher, tasks, &fixture->metrics};
  }

  const v1::TenancyConfig config;
  const Tenants tenants;
  const Domains domains;
};

// Of "alice-key", "bob-key" and "root-key", which is an administrator's.
inline constexpr char kThreeTenants[] =
    "tenants:\n"
    "  - {id: alice, api_key_sha256: "
    "[72ee9d4355ccb9d3a4c9dbf37382e38e75c1b1a225b5bd1f729ee91bbda30c20]}\n"
    "  - {id: bob, api_key_sha256: "
    "[9b94dc1a51a38769f135edf04033ad7f2f487b6c25929be7a861cfc1ab10cf98]}\n"
    "  - {id: root, administrator: true, api_key_sha256: "
    "[53ee2a345a1cbf8f01c840e98e2c72e8826b89578da737d03dd600c68bb67f83]}\n";

}  // namespace trivium::router
