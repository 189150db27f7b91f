// The methods of trivium.v1.Inference that are about the semantic cache and its encoder.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/net/server.h"
#include "services/router/api/inference_service.h"
#include "services/router/semantic_cache/cache_service.h"

namespace trivium::router {
namespace {

constexpr int kTextsMax = 16;  // one batch: questions to the cache wait behind it
constexpr size_t kTextBytesMax = 65536;

absl::Status CheckTexts(const v1::EmbedRequest& request) {
  if (request.texts_size() < 1 || request.texts_size() > kTextsMax) {
    return InvalidArgument("texts: {} are given, must be 1 to {}", request.texts_size(), kTextsMax);
  }
  for (int i = 0; i < request.texts_size(); ++i) {
    if (request.texts(i).size() <= kTextBytesMax) continue;
    return InvalidArgument("texts[{}]: has {} bytes, at most {} are allowed", i,
                           request.texts(i).size(), kTextBytesMax);
  }
  return absl::OkStatus();
}

void Fill(const CacheFront::Explanation& explanation, v1::CacheExplainResponse* response) {
  if (explanation.bypass != Bypass::kNone) response->set_bypass(Name(explanation.bypass));
  response->set_category(explanation.category);
  response->set_confidence(explanation.confidence);
  response->set_has_same_words(explanation.has_same_words);
  for (const SemanticCache::Examined& one : explanation.examined) {
    v1::CacheCandidate* candidate = response->add_candidates();
    candidate->set_similarity(one.similarity);
    candidate->set_age_s(static_cast<double>(one.age_ms) / 1000);
    candidate->set_verdict(one.verdict);
  }
}

void Fill(const SemanticCache::Counts& counts, const BreakEven::State& state,
          v1::CacheCategoryStatus* out) {
  out->set_category(counts.category);
  out->set_enabled(counts.is_enabled);
  out->set_suspended(state.is_suspended);
  out->set_threshold(counts.threshold);
  out->set_ttl_s(static_cast<double>(counts.ttl_ms) / 1000);
  out->set_hits(counts.hits);
  out->set_same_words(counts.exact_hits);
  out->set_misses(counts.misses);
  out->set_entries(counts.entries);
  out->set_bytes(counts.bytes);
  for (size_t i = 1; i < counts.guarded.size(); ++i) {
    out->set_guarded(out->guarded() + counts.guarded[i]);
  }
  for (const uint64_t evicted : counts.evicted) out->set_evicted(out->evicted() + evicted);
  out->set_hit_rate(state.hit_rate);
  out->set_break_even_hit_rate(state.break_even);
}

}  // namespace

bool InferenceService::AdmitsToCache(const grpc::CallbackServerContext& context,
                                     grpc::ServerUnaryReactor* reactor, Caller* caller) const {
  absl::StatusOr<Caller> known = CallerOf(context);
  absl::Status status = known.status();
  if (status.ok() && backend_.cache == nullptr) {
    status = FailedPrecondition("this router has no semantic cache");
  }
  if (!status.ok()) {
    reactor->Finish(net::ToGrpc(status));
    return false;
  }
  *caller = *std::move(known);
  return true;
}

grpc::ServerUnaryReactor* InferenceService::Embed(grpc::CallbackServerContext* context,
                                                  const v1::EmbedRequest* request,
                                                  v1::EmbedResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  Caller caller;
  if (!AdmitsToCache(*context, reactor, &caller)) return reactor;
  absl::Status taken = CheckTexts(*request);
  if (taken.ok()) {
    taken = backend_.cache->encoder().Encode(
        {request->texts().begin(), request->texts().end()},
        [reactor, response](std::vector<embedding::Embedding> all) {
          for (const embedding::Embedding& one : all) {
            v1::TextEmbedding* out = response->add_embeddings();
            out->mutable_vector()->Add(one.vector.begin(), one.vector.end());
            out->set_tokens(one.tokens);
            out->set_is_cut(one.is_cut);
          }
          reactor->Finish(grpc::Status::OK);
        },
        embedding::EmbeddingQueue::Kind::kBulk);
  }
  if (!taken.ok()) reactor->Finish(net::ToGrpc(taken));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::CacheStats(grpc::CallbackServerContext* context,
                                                       const v1::CacheStatsRequest*,
                                                       v1::CacheStatsResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  Caller caller;
  if (!AdmitsToCache(*context, reactor, &caller)) return reactor;
  if (backend_.tenants->has_keys() && !caller.is_administrator) {
    reactor->Finish(grpc::Status(grpc::StatusCode::PERMISSION_DENIED,
                                 "counts are of all tenants: only an administrator sees them"));
    return reactor;
  }
  const std::vector<SemanticCache::Counts> counts = backend_.cache->cache().counts();
  for (size_t i = 0; i < counts.size(); ++i) {
    Fill(counts[i], backend_.cache->front().break_even(i), response->add_categories());
  }
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

// Of the caller's own answers; nobody sees what others asked.
grpc::ServerUnaryReactor* InferenceService::CacheExplain(grpc::CallbackServerContext* context,
                                                         const v1::GenerateRequest* request,
                                                         v1::CacheExplainResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  Caller caller;
  if (!AdmitsToCache(*context, reactor, &caller)) return reactor;
  const absl::Status taken = backend_.Enqueue([this, caller, request, response, reactor] {
    const absl::StatusOr<RunRequest> run = backend_.Prepare(caller, *request);
    if (!run.ok()) return reactor->Finish(net::ToGrpc(run.status()));
    backend_.cache->front().Explain(
        *request, *run, [reactor, response](absl::StatusOr<CacheFront::Explanation> explanation) {
          if (explanation.ok()) Fill(*explanation, response);
          reactor->Finish(net::ToGrpc(explanation.status()));
        });
  });
  if (!taken.ok()) reactor->Finish(net::ToGrpc(taken));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::CacheInvalidate(
    grpc::CallbackServerContext* context, const v1::CacheInvalidateRequest* request,
    v1::CacheInvalidateResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  Caller caller;
  if (!AdmitsToCache(*context, reactor, &caller)) return reactor;
  if (!std::isfinite(request->older_than_s())) {
    reactor->Finish(net::ToGrpc(InvalidArgument("older_than_s: must be a finite number")));
    return reactor;
  }
  SemanticCache::Selection selection;
  selection.category = request->category();
  selection.older_than_ms =
      static_cast<int64_t>(std::clamp(request->older_than_s(), 0.0, 1e12) * 1000);
  selection.tenant = caller.tenant.value;
  if (caller.is_administrator) selection.tenant = request->tenant();
  if (!caller.is_administrator && !request->tenant().empty() &&
      request->tenant() != caller.tenant.value) {
    reactor->Finish(grpc::Status(grpc::StatusCode::PERMISSION_DENIED,
                                 "tenant: only an administrator may name another"));
    return reactor;
  }
  const absl::Status taken = backend_.Enqueue([this, selection, response, reactor] {
    const absl::StatusOr<size_t> entries = backend_.cache->cache().Invalidate(selection);
    if (entries.ok()) response->set_entries(*entries);
    reactor->Finish(net::ToGrpc(entries.status()));
  });
  if (!taken.ok()) reactor->Finish(net::ToGrpc(taken));
  return reactor;
}

}  // namespace trivium::router
