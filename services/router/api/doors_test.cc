// Both doors of one router in front of the same stages: who is let in, whose KV is whose, and that
// the two agree on it.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <thread>

#include "common/config/config.h"
#include "common/config/fields.h"
#include "common/net/server.h"
#include "services/router/api/inference_service.h"
#include "services/router/api/openai/handler.h"
#include "services/router/http/server.h"
#include "services/router/http/test_client.h"
#include "services/router/semantic_cache/cache_service.h"
#include "services/router/tenancy/tenancy_fixture.h"

namespace trivium::router {
namespace {

constexpr int32_t kCached = 16;
constexpr char kPrefix[] =
    "public_prefixes:\n  - {id: manual, text: \"!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!\"}\n";

// What either door says, in the words of gRPC.
struct Reply {
  std::string code, message = {};
  int32_t cached_tokens = 0;
};

struct Ask {
  std::string name = {}, value = {};  // of the header; none: empty
  std::string kv_sharing = {};
  std::string prompt = "hello";
};

std::string CodeOfHttp(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "INVALID_ARGUMENT";
    case 401:
      return "UNAUTHENTICATED";
    case 403:
      return "PERMISSION_DENIED";
    default:
      return std::to_string(status);
  }
}

class DoorsTest : public testing::Test {
 protected:
  explicit DoorsTest(bool has_cache = false) : cache_(has_cache ? MakeCache() : nullptr) {
    server_ = *net::Server::Start(
        {.listen = "127.0.0.1:0", .services = {&service_}, .loopback_only = true});
    http_ = *http::Server::Start({.listen = "127.0.0.1:0", .loopback_only = true, .limits = {}},
                                 &handler_, &fixture_.registry);
    stub_ =
        v1::Inference::NewStub(net::MakeChannel("127.0.0.1:" + std::to_string(server_->port())));
    stages_ = std::thread([this] {
      std::mt19937_64 random(1);
      while (!is_over_) {
        if (!fixture_.cluster.StepRandomCall(random, faults_)) std::this_thread::yield();
        fixture_.Pass(Dispatcher::kTickInterval);
      }
    });
  }
  ~DoorsTest() override {
    http_.reset();
    server_.reset();
    is_over_ = true;
    stages_.join();
  }

  std::unique_ptr<CacheService> MakeCache() {
    v1::SemanticCacheConfig config;
    config.set_enabled(true);
    config.set_encoder(TRIVIUM_TINY_BERT);
    absl::Status status = config::AddShippedCategories(&config);
    if (status.ok()) status = config::CompleteFields(&config, "");
    TRIVIUM_CHECK(status.ok(), "{}", Message(status));
    auto cache = CacheService::Create(
        config, "model",
        [this](RunRequest run, std::shared_ptr<ResponseSink> sink) {
          return fixture_.dispatcher.Submit(std::move(run), std::move(sink));
        },
        {}, &fixture_.registry);
    TRIVIUM_CHECK(cache.ok(), "{}", Message(cache.status()));
    return *std::move(cache);
  }
  Backend BackendHere() {
    Backend backend = tenancy_.BackendOf(&fixture_, &tasks_);
    backend.cache = cache_.get();
    return backend;
  }

  static Reply ReplyOf(const grpc::Status& status) {
    const absl::Status plain = net::FromGrpc(status);
    return {absl::StatusCodeToString(plain.code()), Message(plain)};
  }
  static void Identify(grpc::ClientContext* context, const Ask& ask) {
    if (!ask.name.empty()) context->AddMetadata(ask.name, ask.value);
  }
  Reply ByGrpc(const Ask& ask) {
    v1::GenerateRequest request;
    request.set_text(ask.prompt);
    request.set_kv_sharing(ask.kv_sharing);
    request.mutable_sampling()->set_max_tokens(2);
    grpc::ClientContext context;
    Identify(&context, ask);
    const auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse response;
    int32_t cached = 0;
    while (reader->Read(&response)) cached = response.done().usage().cached_prompt_tokens();
    Reply reply = ReplyOf(reader->Finish());
    reply.cached_tokens = cached;
    return reply;
  }
  Reply ByHttp(const Ask& ask) {
    nlohmann::json body = {{"prompt", ask.prompt}, {"max_tokens", 2}};
    if (!ask.kv_sharing.empty()) body["kv_sharing"] = ask.kv_sharing;
    const http::Answer answer = Http("POST /v1/completions", ask, body.dump());
    const nlohmann::json json = nlohmann::json::parse(answer.body);
    Reply reply{CodeOfHttp(answer.status), ""};
    if (answer.status != 200) {
      reply.message = json["error"]["message"];
      EXPECT_EQ(answer.Has("WWW-Authenticate: Bearer\r\n"), answer.status == 401);
      EXPECT_EQ(json["error"]["code"] == "invalid_api_key", answer.status == 401);
    } else {
      reply.cached_tokens = json["usage"]["prompt_tokens_details"]["cached_tokens"];
    }
    return reply;
  }
  http::Answer Http(const std::string& line, const Ask& ask, const std::string& body = "") {
    http::TestClient client(http_->port());
    std::string head = line + " HTTP/1.1\r\nHost: test\r\n";
    if (!ask.name.empty()) head += ask.name + ": " + ask.value + "\r\n";
    if (!body.empty()) {
      head += "Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) +
              "\r\n";
    }
    client.Send(head + "\r\n" + body);
    return client.Read();
  }
  // Both, which have to agree.
  Reply Answered(const Ask& ask) {
    const Reply one = ByGrpc(ask), other = ByHttp(ask);
    EXPECT_EQ(one.code, other.code) << one.message << " / " << other.message;
    EXPECT_EQ(one.message, other.message);
    // An account may be lost with the attempt that gives it.
    if (faults_ == 0) EXPECT_EQ(one.cached_tokens, other.cached_tokens);
    return one;
  }
  // The domains that a request's stages were told, each the same: as keys and ends.
  std::vector<std::pair<std::string, int32_t>> DomainsOf(const Ask& ask) {
    const size_t before = fixture_.cluster.told().size();
    EXPECT_EQ(Answered(ask).code, "OK");
    const std::vector<SimCluster::Told> told = fixture_.cluster.told();
    std::set<std::vector<std::pair<std::string, int32_t>>> all;
    std::set<Role> stages;
    for (size_t i = before; i < told.size(); ++i) {
      stages.insert(told[i].stage);
      attempts_seen_ = std::max(attempts_seen_, told[i].attempt);
      std::vector<std::pair<std::string, int32_t>> domains;
      for (const v1::KvDomain& one : told[i].domains) {
        EXPECT_EQ(one.key().size(), 32u);
        domains.emplace_back(one.key(), one.token_end());
      }
      all.insert(domains);
    }
    if (all.empty()) return {};
    EXPECT_EQ(stages.size(), 2u);
    EXPECT_EQ(all.size(), 1u) << "stages, attempts and doors were told different domains";
    return *all.begin();
  }

  DispatchFixture fixture_{{.sim = {.cached_tokens = kCached},
                            .attempts_max = 1000,
                            .tenants = {{"alice"}, {"bob"}, {"root"}}}};
  TenancyFixture tenancy_{std::string(kThreeTenants) + kPrefix};
  std::unique_ptr<CacheService> cache_;
  TaskPool tasks_{2, 8};
  InferenceService service_{BackendHere(), "test"};
  openai::OpenAiHandler handler_{BackendHere(), &fixture_.registry};
  std::unique_ptr<net::Server> server_;
  std::unique_ptr<http::Server> http_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  std::atomic<bool> is_over_{false};
  std::atomic<double> faults_{0};
  uint32_t attempts_seen_ = 0;
  std::thread stages_;
};

const Ask kAlice{"authorization", "Bearer alice-key"}, kBob{"x-api-key", "bob-key"},
    kRoot{"authorization", "Bearer root-key"}, kNobody{};

TEST_F(DoorsTest, KeysOpenBoth) {
  EXPECT_EQ(Answered(kAlice).code, "OK");
  EXPECT_EQ(Answered(kBob).code, "OK");
  const Ask table[] = {kNobody,
                       {"authorization", "Bearer wrong-key"},
                       {"x-api-key", "wrong-key"},
                       {"authorization", "alice-key"},
                       {"x-api-key", ""}};
  const int opened = fixture_.cluster.calls_opened();
  for (const Ask& ask : table) {
    const Reply reply = Answered(ask);
    EXPECT_EQ(reply.code, "UNAUTHENTICATED");
    EXPECT_FALSE(reply.message.empty());
  }
  EXPECT_EQ(fixture_.cluster.calls_opened(), opened) << "a stranger's prompt reached a worker";
  EXPECT_NE(fixture_.registry.Text().find(
                "trivium_router_requests_refused_total{reason=\"unauthenticated\"} 10"),
            std::string::npos)
      << fixture_.registry.Text();
}

TEST_F(DoorsTest, EveryQuestionAsksWho) {
  const auto check = [&](const Ask& ask, const std::string& code) {
    {
      grpc::ClientContext context;
      Identify(&context, ask);
      v1::TokenizeRequest request;
      request.set_text("x");
      v1::TokenizeResponse response;
      EXPECT_EQ(ReplyOf(stub_->Tokenize(&context, request, &response)).code, code);
    }
    {
      grpc::ClientContext context;
      Identify(&context, ask);
      v1::ListModelsResponse response;
      EXPECT_EQ(ReplyOf(stub_->ListModels(&context, {}, &response)).code, code);
      EXPECT_EQ(response.models_size() > 0, code == "OK");
    }
    grpc::ClientContext context;
    Identify(&context, ask);
    v1::ClusterStatusResponse response;
    EXPECT_EQ(ReplyOf(stub_->ClusterStatus(&context, {}, &response)).code, code);
    EXPECT_EQ(response.workers_size() > 0, code == "OK");
    EXPECT_EQ(CodeOfHttp(Http("GET /v1/models", ask).status), code);
    EXPECT_EQ(Http("GET /health", ask).status, 200);
  };
  check(kAlice, "OK");
  check(kNobody, "UNAUTHENTICATED");
  check({"authorization", "Bearer wrong"}, "UNAUTHENTICATED");
  EXPECT_EQ(CodeOfHttp(Http("GET /metrics", kNobody).status), "UNAUTHENTICATED");
  EXPECT_EQ(CodeOfHttp(Http("GET /metrics", kAlice).status), "PERMISSION_DENIED");
  const http::Answer page = Http("GET /metrics", kRoot);
  EXPECT_EQ(page.status, 200);
  EXPECT_NE(page.body.find("trivium_router_tenant_requests_total{tenant=\"alice\"}"),
            std::string::npos);
  for (const char* status : {"401", "403"}) {
    EXPECT_NE(page.body.find(fmt::format("http_requests_total{{status=\"{}\"}}", status)),
              std::string::npos);
  }
}

TEST_F(DoorsTest, ARequestIsExplainedToItsOwnerAndTheAdministratorAlone) {
  v1::GenerateRequest request;
  request.set_text("Hello");
  request.mutable_sampling()->set_max_tokens(2);
  std::string id;
  {
    grpc::ClientContext context;
    Identify(&context, kAlice);
    auto reader = stub_->Generate(&context, request);
    for (v1::GenerateResponse response; reader->Read(&response);) {
      if (response.has_done()) id = response.done().request_id();
    }
    ASSERT_TRUE(reader->Finish().ok());
  }
  const auto explain = [&](const Ask& ask, const std::string& request_id) {
    grpc::ClientContext context;
    Identify(&context, ask);
    v1::ExplainRequest question;
    question.set_request_id(request_id);
    v1::ExplainResponse response;
    const std::string code = ReplyOf(stub_->Explain(&context, question, &response)).code;
    EXPECT_EQ(response.placements_size(), code == "OK" ? 1 : 0);
    if (code == "OK") EXPECT_NE(response.placements(0).find(": prefill "), std::string::npos);
    return code;
  };
  EXPECT_EQ(explain(kAlice, id), "OK");
  EXPECT_EQ(explain(kRoot, id), "OK");
  EXPECT_EQ(explain(kBob, id), "NOT_FOUND");
  EXPECT_EQ(explain(kAlice, id + "0"), "NOT_FOUND");
  EXPECT_EQ(explain(kNobody, id), "UNAUTHENTICATED");
}

// Beyond the first 64 tenants, one counter stands for all: a label must stay bounded.
TEST(TenantMetricsTest, TheLabelIsCapped) {
  std::vector<TenantId> tenants;
  for (int i = 0; i < 70; ++i) tenants.push_back({fmt::format("t{}", i)});
  telemetry::Metrics registry;
  RouterMetrics metrics(&registry, tenants);
  for (const TenantId& tenant : tenants) metrics.Submitted(tenant);
  metrics.Submitted({"t3"});
  const std::string page = registry.Text();
  const auto shows = [&](const std::string& line) { return page.find(line) != std::string::npos; };
  EXPECT_TRUE(shows("trivium_router_tenant_requests_total{tenant=\"t3\"} 2"));
  EXPECT_TRUE(shows("trivium_router_tenant_requests_total{tenant=\"t63\"} 1"));
  EXPECT_TRUE(shows("trivium_router_tenant_requests_total{tenant=\"other\"} 6"));
  EXPECT_FALSE(shows("tenant=\"t64\""));
}

TEST_F(DoorsTest, ARequestMayOnlyNarrow) {
  Ask ask = kAlice;
  ask.kv_sharing = "group";
  EXPECT_EQ(Answered(ask).message,
            "kv_sharing: is group, which is wider than the tenant's, private");
  ask.kv_sharing = "everybody";
  EXPECT_EQ(Answered(ask).code, "INVALID_ARGUMENT");
  ask.kv_sharing = "none";
  EXPECT_TRUE(DomainsOf(ask).empty());
  ask.kv_sharing = "private";
  EXPECT_EQ(DomainsOf(ask), DomainsOf(kAlice));
}

TEST_F(DoorsTest, TwoTenantsShareWhatIsPublicAndNothingElse) {
  faults_ = 0.2;
  Ask alice = kAlice, bob = kBob;
  alice.prompt = bob.prompt = std::string(40, '!');
  const auto of_alice = DomainsOf(alice), of_bob = DomainsOf(bob);
  ASSERT_EQ(of_alice.size(), 2u);
  ASSERT_EQ(of_bob.size(), 2u);
  EXPECT_EQ(of_alice[0].second, 32);
  EXPECT_EQ(of_alice[1].second, 0);
  EXPECT_TRUE(of_alice[0] == of_bob[0]);
  EXPECT_FALSE(of_alice[1] == of_bob[1]);
  EXPECT_TRUE(DomainsOf(kAlice).at(0) == of_alice[1]);
  EXPECT_TRUE(of_alice == DomainsOf(alice)) << "of the next request too";
  for (int i = 0; i < 100 && attempts_seen_ < 2; ++i) DomainsOf(alice);
  EXPECT_GE(attempts_seen_, 2u) << "no attempt failed, so that retries were not seen";
}

TEST_F(DoorsTest, WhatWasCachedIsSaidToItsOwner) {
  Ask ask = kAlice;
  ask.prompt = std::string(40, '!');
  EXPECT_EQ(Answered(ask).cached_tokens, kCached);
  ask.prompt = "!";
  EXPECT_EQ(Answered(ask).cached_tokens, 1) << "no more than the prompt has";
}

struct CachedDoorsTest : DoorsTest {
  CachedDoorsTest() : DoorsTest(true) {}

  struct Answered {
    std::string text, code = {};
    v1::Done done;
  };
  Answered Generate(const Ask& ask, const std::string& category = "chat") {
    v1::GenerateRequest request;
    request.set_text(ask.prompt);
    request.mutable_sampling()->set_max_tokens(150);
    request.mutable_cache()->set_category(category);
    grpc::ClientContext context;
    Identify(&context, ask);
    const auto reader = stub_->Generate(&context, request);
    Answered answered;
    for (v1::GenerateResponse response; reader->Read(&response);) {
      answered.text += response.delta().text();
      if (response.has_done()) answered.done = response.done();
    }
    answered.code = ReplyOf(reader->Finish()).code;
    return answered;
  }
  uint64_t Entries() {
    {
      grpc::ClientContext context;
      Identify(&context, kAlice);
      v1::CacheStatsResponse none;
      EXPECT_EQ(ReplyOf(stub_->CacheStats(&context, {}, &none)).code, "PERMISSION_DENIED");
    }
    grpc::ClientContext context;
    Identify(&context, kRoot);
    v1::CacheStatsResponse stats;
    EXPECT_TRUE(stub_->CacheStats(&context, {}, &stats).ok());
    uint64_t entries = 0;
    for (const v1::CacheCategoryStatus& category : stats.categories())
      entries += category.entries();
    return entries;
  }
  // A question of hers that came to its own end and is kept.
  std::pair<Ask, Answered> Teach() {
    Ask ask = kAlice;
    for (int i = 0; i < 100; ++i) {
      ask.prompt = fmt::format("hello {}", i);
      const Answered answered = Generate(ask);
      EXPECT_EQ(answered.code, "OK");
      if (answered.done.finish_reason() != "stop") continue;
      while (Entries() == 0) std::this_thread::yield();
      return {ask, answered};
    }
    ADD_FAILURE() << "no answer came to its own end";
    return {ask, {}};
  }
  v1::CacheInvalidateResponse Invalidate(const Ask& ask, const std::string& tenant,
                                         const std::string& code) {
    grpc::ClientContext context;
    Identify(&context, ask);
    v1::CacheInvalidateRequest request;
    request.set_tenant(tenant);
    v1::CacheInvalidateResponse response;
    EXPECT_EQ(ReplyOf(stub_->CacheInvalidate(&context, request, &response)).code, code);
    return response;
  }
};

TEST_F(CachedDoorsTest, BothDoorsReplayWhatTheTenantWasTold) {
  const auto [ask, first] = Teach();
  EXPECT_FALSE(first.done.has_cached());
  const Answered again = Generate(ask);
  EXPECT_EQ(again.text, first.text);
  ASSERT_TRUE(again.done.has_cached());
  EXPECT_TRUE(again.done.cached().same_words());
  EXPECT_NE(again.done.request_id(), first.done.request_id());
  EXPECT_EQ(again.done.usage().prompt_tokens(), first.done.usage().prompt_tokens());
  EXPECT_EQ(again.done.usage().completion_tokens(), first.done.usage().completion_tokens());
  nlohmann::json body = {{"prompt", ask.prompt},
                         {"max_tokens", 150},
                         {"temperature", 0},
                         {"cache", {{"category", "chat"}}}};
  const http::Answer whole = Http("POST /v1/completions", ask, body.dump());
  const nlohmann::json json = nlohmann::json::parse(whole.body);
  EXPECT_EQ(json["choices"][0]["text"], first.text);
  EXPECT_EQ(json["cached"]["category"], "chat") << whole.body;
  body["stream"] = true;
  const http::Answer stream = Http("POST /v1/completions", ask, body.dump());
  EXPECT_NE(stream.body.find("\"cached\":{\"category\":\"chat\""), std::string::npos)
      << stream.body;
  Ask bob = kBob;
  bob.prompt = ask.prompt;
  const Answered others = Generate(bob);
  EXPECT_FALSE(others.done.has_cached()) << "another tenant got it";
  EXPECT_EQ(others.text, first.text);
  EXPECT_NE(fixture_.registry.Text().find("trivium_router_cache_hits_total{category=\"chat\"} 3"),
            std::string::npos)
      << fixture_.registry.Text();
}

TEST_F(CachedDoorsTest, OnlyOnesOwnAnswersCanBeDropped) {
  const auto [ask, first] = Teach();
  Invalidate(kNobody, "", "UNAUTHENTICATED");
  Invalidate(kBob, "alice", "PERMISSION_DENIED");
  EXPECT_EQ(Invalidate(kBob, "", "OK").entries(), 0u);
  EXPECT_EQ(Entries(), 1u);
  EXPECT_TRUE(Generate(ask).done.has_cached());
  EXPECT_EQ(Invalidate(kAlice, "", "OK").entries(), 1u);
  EXPECT_FALSE(Generate(ask).done.has_cached());
  while (Entries() == 0) std::this_thread::yield();
  EXPECT_EQ(Invalidate(kRoot, "alice", "OK").entries(), 1u);
}

TEST_F(CachedDoorsTest, HintsAreCheckedAndTextsEmbedded) {
  EXPECT_EQ(Generate(kAlice, "astrology").code, "INVALID_ARGUMENT");
  const nlohmann::json body = {{"prompt", "x"}, {"cache", {{"max_age_s", -1}}}};
  EXPECT_EQ(Http("POST /v1/completions", kAlice, body.dump()).status, 400);
  grpc::ClientContext context;
  Identify(&context, kAlice);
  v1::EmbedRequest request;
  request.add_texts("one");
  request.add_texts("two");
  request.add_texts("one");
  v1::EmbedResponse response;
  ASSERT_TRUE(stub_->Embed(&context, request, &response).ok());
  ASSERT_EQ(response.embeddings_size(), 3);
  EXPECT_EQ(response.embeddings(0).vector_size(), 40);
  EXPECT_EQ(response.embeddings(0).SerializeAsString(), response.embeddings(2).SerializeAsString());
  EXPECT_NE(response.embeddings(0).SerializeAsString(), response.embeddings(1).SerializeAsString());
  grpc::ClientContext another;
  Identify(&another, kAlice);
  v1::GenerateRequest question;
  question.set_text("What is my order?");
  v1::CacheExplainResponse explained;
  ASSERT_TRUE(stub_->CacheExplain(&another, question, &explained).ok());
  EXPECT_EQ(explained.bypass(), "personal");
}

TEST_F(DoorsTest, WithoutACacheItIsSaidThatThereIsNone) {
  grpc::ClientContext context;
  Identify(&context, kAlice);
  v1::CacheStatsResponse stats;
  EXPECT_EQ(ReplyOf(stub_->CacheStats(&context, {}, &stats)).code, "FAILED_PRECONDITION");
}

}  // namespace
}  // namespace trivium::router
