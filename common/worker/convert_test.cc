#include "common/worker/convert.h"

#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "trivium/v1/stage.pb.h"

namespace trivium::worker {
namespace {

constexpr StageLimits kLimits{
    .vocab = 100, .context = 64, .fingerprint = "print", .numerics_class = "batch_invariant/avx2"};

v1::DecodeRequest Valid() {
  v1::DecodeRequest request;
  request.mutable_key()->set_request_id("a-request_1.2");
  request.mutable_key()->set_attempt(3);
  request.mutable_key()->set_secret("0123456789abcdef");
  request.set_fingerprint("print");
  for (int id : {0, 99, 5, 7}) request.add_token_ids(id);
  request.set_output_index(2);
  request.set_numerics_class("batch_invariant/avx2");
  v1::StageSampling& sampling = *request.mutable_sampling();
  sampling.set_temperature(0.5f);
  sampling.set_top_k(10);
  sampling.set_top_p(0.9f);
  sampling.set_seed(~uint64_t{0});
  sampling.set_max_tokens(62);
  sampling.set_min_tokens(1);
  sampling.add_stop_token_ids(9);
  sampling.set_logprobs(-1);
  sampling.set_min_p(0.1f);
  sampling.set_typical_p(0.8f);
  sampling.set_repetition_penalty(1.1f);
  sampling.set_presence_penalty(-0.5f);
  sampling.set_frequency_penalty(2);
  for (int id = 0; id < 100; ++id)
    (*sampling.mutable_logit_bias())[id] = static_cast<float>(id - 50);
  sampling.set_prompt_logprobs(20);
  request.set_priority(-100);
  request.set_preemptions(3);
  return request;
}

TEST(ConvertTest, AValidRequestArrivesWhole) {
  const auto request = ToStageRequest(Valid(), kLimits);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->key.request.value, "a-request_1.2");
  EXPECT_EQ(request->key.attempt.value, 3u);
  EXPECT_EQ(std::string(request->key.secret.begin(), request->key.secret.end()),
            "0123456789abcdef");
  EXPECT_EQ(request->token_ids, (std::vector<int32_t>{0, 99, 5, 7}));
  EXPECT_EQ(request->output_index, 2);
  EXPECT_EQ(request->remaining_tokens(), 60);
  EXPECT_EQ(request->priority, -100);
  EXPECT_EQ(request->preemptions, 3);
  v1::StageSampling again;
  ToMessage(request->sampling, &again);
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(again, Valid().sampling()));
}

TEST(ConvertTest, ChoicesCountFromOneAndDrawWithSeedsInARow) {
  EXPECT_EQ(ToStageRequest(Valid(), kLimits)->choices, 1);
  v1::DecodeRequest message = Valid();
  message.set_output_index(0);
  message.mutable_sampling()->set_max_tokens(60);
  message.set_choices(16);
  const auto request = ToStageRequest(message, kLimits);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->choices, 16);
  EXPECT_EQ(request->SamplingOf(0).seed, ~uint64_t{0});
  EXPECT_EQ(request->SamplingOf(2).seed, 1u);
}

struct BadCase {
  const char* field;
  std::function<void(v1::DecodeRequest&)> spoil;
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
};

TEST(ConvertTest, WhatIsWrongIsNamed) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto precondition = absl::StatusCode::kFailedPrecondition;
  const BadCase cases[] = {
      {"key.request_id", [](auto& r) { r.mutable_key()->clear_request_id(); }},
      {"key.request_id", [](auto& r) { r.mutable_key()->set_request_id("two words"); }},
      {"key.request_id", [](auto& r) { r.mutable_key()->set_request_id(std::string(65, 'a')); }},
      {"key.attempt", [](auto& r) { r.mutable_key()->set_attempt(0); }},
      {"key.secret", [](auto& r) { r.mutable_key()->set_secret("short"); }},
      {"key.secret", [](auto& r) { r.mutable_key()->set_secret(std::string(17, 'x')); }},
      {"key.request_id", [](auto& r) { r.clear_key(); }},
      {"fingerprint", [](auto& r) { r.set_fingerprint("prin"); }, precondition},
      {"fingerprint", [](auto& r) { r.clear_fingerprint(); }, precondition},
      {"numerics_class", [](auto& r) { r.set_numerics_class("fast/avx2"); }, precondition},
      {"numerics_class", [](auto& r) { r.set_numerics_class("batch_invariant/amx"); },
       precondition},
      {"token_ids", [](auto& r) { r.clear_token_ids(); }},
      {"token_ids[1]", [](auto& r) { r.set_token_ids(1, 100); }},
      {"token_ids[2]", [](auto& r) { r.set_token_ids(2, -1); }},
      {"token_ids", [](auto& r) { r.mutable_token_ids()->Resize(65, 1); }},
      {"output_index", [](auto& r) { r.set_output_index(-1); }},
      {"output_index", [](auto& r) { r.set_output_index(62); }},
      {"output_index", [](auto& r) { r.set_output_index(4); }},
      {"sampling.max_tokens", [](auto& r) { r.mutable_sampling()->set_max_tokens(63); }},
      {"sampling.max_tokens", [](auto& r) { r.mutable_sampling()->set_max_tokens(INT32_MAX); }},
      {"sampling.max_tokens", [](auto& r) { r.mutable_sampling()->set_max_tokens(0); }},
      {"sampling.temperature", [nan](auto& r) { r.mutable_sampling()->set_temperature(nan); }},
      {"sampling.top_p", [](auto& r) { r.mutable_sampling()->set_top_p(0); }},
      {"sampling.top_p", [nan](auto& r) { r.mutable_sampling()->set_top_p(nan); }},
      {"sampling.top_k", [](auto& r) { r.mutable_sampling()->set_top_k(-1); }},
      {"sampling.stop_token_ids", [](auto& r) { r.mutable_sampling()->add_stop_token_ids(100); }},
      {"sampling.logprobs", [](auto& r) { r.mutable_sampling()->set_logprobs(21); }},
      {"sampling.prompt_logprobs", [](auto& r) { r.mutable_sampling()->set_prompt_logprobs(-2); }},
      {"sampling.min_p", [](auto& r) { r.mutable_sampling()->set_min_p(1.5f); }},
      {"sampling.typical_p", [](auto& r) { r.mutable_sampling()->clear_typical_p(); }},
      {"sampling.repetition_penalty",
       [](auto& r) { r.mutable_sampling()->clear_repetition_penalty(); }},
      {"sampling.presence_penalty",
       [nan](auto& r) { r.mutable_sampling()->set_presence_penalty(nan); }},
      {"sampling.frequency_penalty",
       [](auto& r) { r.mutable_sampling()->set_frequency_penalty(-2.5f); }},
      {"sampling.logit_bias: no token 100",
       [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[100] = 1; }},
      {"sampling.logit_bias[7]",
       [nan](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[7] = nan; }},
      {"sampling.logit_bias has 1025",
       [](auto& r) {
         for (int id = 0; id < 1025; ++id) (*r.mutable_sampling()->mutable_logit_bias())[id] = 1;
       }},
      {"sampling", [](auto& r) { r.clear_sampling(); }},
      {"choices", [](auto& r) { r.set_choices(-1); }},
      {"choices", [](auto& r) { r.set_choices(2); }},
      {"choices",
       [](auto& r) {
         r.set_output_index(0);
         r.mutable_sampling()->set_max_tokens(60);
         r.set_choices(17);
       }},
      {"priority", [](auto& r) { r.set_priority(-101); }},
      {"priority", [](auto& r) { r.set_priority(std::numeric_limits<int32_t>::min()); }},
      {"preemptions", [](auto& r) { r.set_preemptions(4); }},
      {"preemptions", [](auto& r) { r.set_preemptions(-1); }},
  };
  for (const BadCase& bad : cases) {
    v1::DecodeRequest request = Valid();
    bad.spoil(request);
    const absl::Status status = ToStageRequest(request, kLimits).status();
    EXPECT_EQ(status.code(), bad.code) << bad.field << ": " << status;
    EXPECT_NE(Message(status).find(bad.field), std::string::npos) << bad.field << ": " << status;
  }
}

// What a prefill worker needs to queue a prompt.
TEST(ConvertTest, AShareIsTakenOrRefused) {
  v1::PrefillRequest request;
  *request.mutable_key() = Valid().key();
  request.set_fingerprint("print");
  *request.mutable_token_ids() = Valid().token_ids();
  request.set_output_index(2);
  *request.mutable_sampling() = Valid().sampling();
  request.set_priority(-7);
  EXPECT_EQ(ToStageRequest(request, kLimits)->share.tenant, 0u);
  EXPECT_EQ(ToStageRequest(request, kLimits)->share.weight, 1);
  EXPECT_EQ(ToStageRequest(request, kLimits)->priority, -7);
  request.mutable_share()->set_tenant(~uint64_t{0});
  for (const double weight : {0.01, 2.5, 100.0}) {
    request.mutable_share()->set_weight(weight);
    EXPECT_EQ(ToStageRequest(request, kLimits)->share.tenant, ~uint64_t{0});
    EXPECT_EQ(ToStageRequest(request, kLimits)->share.weight, weight);
  }
  for (const double weight : {0.0, -1.0, 0.009, 101.0, std::nan(""), HUGE_VAL}) {
    request.mutable_share()->set_weight(weight);
    const absl::Status status = ToStageRequest(request, kLimits).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(Message(status).find("share.weight"), std::string::npos) << status;
  }
  request.clear_share();
  request.set_priority(101);
  EXPECT_NE(Message(ToStageRequest(request, kLimits).status()).find("priority"), std::string::npos);
}

TEST(ConvertTest, NumericsClassesPairUnderFastAlone) {
  EXPECT_TRUE(CheckNumerics("fast/avx2", "fast/amx").ok());
  EXPECT_TRUE(CheckNumerics("fast/avx2", "").ok());
  EXPECT_TRUE(CheckNumerics("batch_invariant/amx", "batch_invariant/amx").ok());
  EXPECT_FALSE(CheckNumerics("batch_invariant/amx", "batch_invariant/avx2").ok());
  EXPECT_FALSE(CheckNumerics("fast/avx2", "batch_invariant/avx2").ok());
}

v1::LandingTicket ValidTicket() {
  v1::LandingTicket ticket;
  ToMessage(transfer::Ticket{.address = std::string("\0\xff", 2),
                             .epoch = {~uint64_t{0}},
                             .landing_id = 5,
                             .generation = 7,
                             .layers = 30,
                             .token_begin = 16,
                             .token_end = 40,
                             .row_elems = 192,
                             .block_tokens = 16},
            &ticket);
  return ticket;
}

TEST(ConvertTest, ATicketTravelsWhole) {
  const auto ticket = ToTicket(ValidTicket(), 40);
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  v1::LandingTicket again;
  ToMessage(*ticket, &again);
  EXPECT_EQ(again.SerializeAsString(), ValidTicket().SerializeAsString());
  EXPECT_EQ(ticket->address, std::string("\0\xff", 2));
  EXPECT_EQ(ticket->epoch.value, ~uint64_t{0});
}

TEST(ConvertTest, ABadTicketIsNamed) {
  const std::pair<const char*, std::function<void(v1::LandingTicket&)>> cases[] = {
      {"ticket.address", [](auto& t) { t.clear_address(); }},
      {"ticket.address", [](auto& t) { t.set_address(std::string(5000, 'x')); }},
      {"ticket.wire_format", [](auto& t) { t.set_wire_format(4); }},
      {"ticket.token_end", [](auto& t) { t.set_token_end(39); }},
      {"ticket.token_begin", [](auto& t) { t.set_token_begin(-16); }},
      {"ticket.token_begin", [](auto& t) { t.set_token_begin(40); }},
      {"ticket.layers", [](auto& t) { t.set_layers(0); }},
      {"ticket.row_elems", [](auto& t) { t.set_row_elems(-1); }},
      {"ticket.block_tokens", [](auto& t) { t.set_block_tokens(0); }},
  };
  for (const auto& [field, spoil] : cases) {
    v1::LandingTicket ticket = ValidTicket();
    spoil(ticket);
    const absl::Status status = ToTicket(ticket, 40).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << field << ": " << status;
    EXPECT_NE(Message(status).find(field), std::string::npos) << field << ": " << status;
  }
}

StageRequest Choices(int32_t output_index, int32_t choices) {
  return {.key = {},
          .token_ids = {1},
          .output_index = output_index,
          .sampling = {},
          .choices = choices};
}

TEST(ConvertTest, ATailTravelsWholeOrNotAtAll) {
  OutputToken token{.index = 3,
                    .token = {.id = 42, .logprob = -0.5f, .top = {{42, -0.5f}, {7, -1.5f}}},
                    .has_logprob = true,
                    .finish = engine::FinishReason::kStop};
  const auto parse = [&](int32_t vocab, int32_t output_index) {
    return ParseTail(SerializeTail({&token, 1}), vocab, Choices(output_index, 1));
  };
  const auto again = parse(100, 3);
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_EQ(again->size(), 1u);
  EXPECT_EQ(again->front().index, 3);
  EXPECT_EQ(again->front().token.id, 42);
  EXPECT_EQ(again->front().token.logprob, -0.5f);
  EXPECT_EQ(again->front().token.top, token.token.top);
  EXPECT_TRUE(again->front().has_logprob);
  EXPECT_EQ(again->front().finish, engine::FinishReason::kStop);

  EXPECT_TRUE(absl::IsDataLoss(parse(100, 4).status()));
  EXPECT_TRUE(absl::IsDataLoss(parse(42, 3).status()));
  EXPECT_TRUE(absl::IsDataLoss(ParseTail("\xff\xff", 100, Choices(3, 1)).status()));
  token.token.top.resize(21, {1, 0});
  EXPECT_TRUE(absl::IsDataLoss(parse(100, 3).status()));
}

TEST(ConvertTest, ATailHoldsATokenOfEachChoiceInOrder) {
  std::vector<OutputToken> tokens;
  for (int32_t i = 0; i < 3; ++i)
    tokens.push_back({.choice = i, .token = {.id = 10 + i, .logprob = 0, .top = {}}});
  const auto again = ParseTail(SerializeTail(tokens), 100, Choices(0, 3));
  ASSERT_TRUE(again.ok()) << again.status();
  for (int32_t i = 0; i < 3; ++i) EXPECT_EQ((*again)[static_cast<size_t>(i)].token.id, 10 + i);
  EXPECT_TRUE(absl::IsDataLoss(ParseTail(SerializeTail(tokens), 100, Choices(0, 2)).status()));
  EXPECT_TRUE(absl::IsDataLoss(ParseTail(SerializeTail(tokens), 100, Choices(0, 4)).status()));
  std::swap(tokens[1], tokens[2]);
  EXPECT_TRUE(absl::IsDataLoss(ParseTail(SerializeTail(tokens), 100, Choices(0, 3)).status()));
}

// Prefixes that are sent from worker to worker.

v1::KvDomain OneDomain() {
  v1::KvDomain domain;
  domain.set_key(std::string(32, 'k'));
  domain.set_quota(1);
  return domain;
}

v1::SendPrefixRequest ValidPrefix() {
  v1::SendPrefixRequest request;
  *request.mutable_key() = Valid().key();
  request.set_fingerprint("print");
  request.set_numerics_class("batch_invariant/avx2");
  for (int i = 0; i < 32; ++i) request.add_token_ids(i);
  *request.add_kv_domains() = OneDomain();
  const transfer::Ticket ticket{.address = "somewhere",
                                .epoch = {1},
                                .landing_id = 2,
                                .layers = 3,
                                .token_begin = 16,
                                .token_end = 32,
                                .row_elems = 4,
                                .block_tokens = 16};
  ToMessage(ticket, request.mutable_ticket());
  return request;
}

TEST(ConvertTest, APrefixIsNamedAsItsOwnerNamesIt) {
  const auto prefix = ToPrefixRequest(ValidPrefix(), kLimits);
  ASSERT_TRUE(prefix.ok()) << prefix.status();
  EXPECT_EQ(prefix->ticket.token_end, 32);
  EXPECT_EQ(prefix->key.attempt.value, 3u);
  v1::PrefillRequest own;
  *own.mutable_key() = Valid().key();
  own.set_fingerprint("print");
  for (int i = 0; i < 33; ++i) own.add_token_ids(i);
  *own.mutable_sampling() = Valid().sampling();
  own.mutable_sampling()->set_max_tokens(2);
  *own.add_kv_domains() = OneDomain();
  own.set_pull_tokens(32);
  own.set_pull_ms(20);
  const auto request = ToStageRequest(own, kLimits);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->pull_tokens, 32);
  EXPECT_EQ(request->pull_for, std::chrono::milliseconds(20));
  ASSERT_EQ(request->chain.size(), 2);
  EXPECT_EQ(kv::CommonBlocks(request->chain, prefix->chain), 2);
  for (const int tokens : {-16, 8, 48, 33}) {
    own.set_pull_tokens(tokens);
    EXPECT_EQ(ToStageRequest(own, kLimits).status().code(), absl::StatusCode::kInvalidArgument);
  }
  own.set_pull_tokens(16);
  for (const double ms : {0.0, -1.0, 60001.0, std::numeric_limits<double>::quiet_NaN()}) {
    own.set_pull_ms(ms);
    EXPECT_EQ(ToStageRequest(own, kLimits).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(ConvertTest, SlicesOfPicturesAreAPartOfWhatBlocksHold) {
  v1::PrefillRequest plain;
  *plain.mutable_key() = Valid().key();
  plain.set_fingerprint("print");
  for (int i = 0; i < 40; ++i) plain.add_token_ids(i);
  *plain.mutable_sampling() = Valid().sampling();
  plain.mutable_sampling()->set_max_tokens(2);
  plain.mutable_sampling()->set_prompt_logprobs(-1);
  *plain.add_kv_domains() = OneDomain();
  v1::PrefillRequest pictured = plain;
  const auto add = [](auto& request, int32_t position, int32_t tokens, char digest) {
    v1::PictureSlice* slice = request.add_slices();
    slice->set_position(position);
    slice->set_tokens(tokens);
    slice->set_digest(std::string(32, digest));
  };
  add(pictured, 20, 16, 'd');
  const auto request = ToStageRequest(pictured, kLimits);
  ASSERT_TRUE(request.ok()) << request.status();
  ASSERT_EQ(request->slices.size(), 1u);
  EXPECT_EQ(request->slices[0].position, 20);
  EXPECT_EQ(kv::CommonBlocks(request->chain, ToStageRequest(plain, kLimits)->chain), 1);

  // A prefix names its blocks alike, also where it ends inside a slice.
  v1::SendPrefixRequest prefix = ValidPrefix();
  add(prefix, 20, 16, 'd');
  ASSERT_TRUE(ToPrefixRequest(prefix, kLimits).ok());
  EXPECT_EQ(kv::CommonBlocks(request->chain, ToPrefixRequest(prefix, kLimits)->chain), 2);

  for (const auto& [position, tokens, digest] : {std::tuple(-1, 3, 32),
                                                 {30, 0, 32},
                                                 {39, 2, 32},
                                                 {40, 1, 32},
                                                 {2, INT32_MAX, 32},
                                                 {INT32_MAX, INT32_MAX, 32},
                                                 {30, 5, 32},
                                                 {36, 4, 31}}) {
    v1::PrefillRequest bad = pictured;
    add(bad, position, tokens, 'e');
    bad.mutable_slices(1)->mutable_digest()->resize(static_cast<size_t>(digest));
    const absl::Status status = ToStageRequest(bad, kLimits).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(Message(status).find("slices[1]"), std::string::npos) << status;
  }
  pictured.mutable_sampling()->set_prompt_logprobs(0);
  EXPECT_EQ(ToStageRequest(pictured, kLimits).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ConvertTest, APrefixOfAnotherKindIsRefused) {
  struct Case {
    const char* field;
    std::function<void(v1::SendPrefixRequest&)> spoil;
    absl::StatusCode code = absl::StatusCode::kInvalidArgument;
  };
  const auto precondition = absl::StatusCode::kFailedPrecondition;
  const Case cases[] = {
      {"fingerprint", [](auto& r) { r.set_fingerprint("other"); }, precondition},
      {"numerics_class", [](auto& r) { r.set_numerics_class("fast/avx2"); }, precondition},
      {"numerics_class", [](auto& r) { r.clear_numerics_class(); }, precondition},
      {"key.attempt", [](auto& r) { r.mutable_key()->set_attempt(0); }},
      {"token_ids", [](auto& r) { r.clear_token_ids(); }},
      {"token_ids", [](auto& r) { r.add_token_ids(1); }},
      {"token_ids[0]", [](auto& r) { r.set_token_ids(0, 100); }},
      {"kv_domains", [](auto& r) { r.mutable_kv_domains(0)->set_key("short"); }},
      {"ticket.token_end", [](auto& r) { r.mutable_ticket()->set_token_end(16); }},
      {"ticket.token_begin", [](auto& r) { r.mutable_ticket()->set_token_begin(32); }},
      {"ticket.address", [](auto& r) { r.mutable_ticket()->clear_address(); }}};
  for (const Case& one : cases) {
    v1::SendPrefixRequest request = ValidPrefix();
    one.spoil(request);
    const absl::Status status = ToPrefixRequest(request, kLimits).status();
    EXPECT_EQ(status.code(), one.code) << one.field;
    EXPECT_NE(Message(status).find(one.field), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace trivium::worker
