#include "services/cli/table.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace trivium::cli {
namespace {

v1::ClusterStatusResponse Status() {
  v1::ClusterStatusResponse status;
  status.set_router_version("0.1.0");
  status.set_requests_running(2);
  status.set_requests_waiting(1);
  status.set_output_tokens(98765);
  v1::WorkerStatus* worker = status.add_workers();
  worker->set_id("prefill-0");
  worker->set_role("prefill");
  worker->set_state("ready");
  worker->set_address("127.0.0.1:7401");
  worker->set_numerics_class("fast/avx2");
  worker->set_blocks_total(100);
  worker->set_blocks_free(90);
  worker->set_blocks_used(8);
  worker->set_blocks_leased(2);
  worker->set_requests_running(3);
  worker->set_steps(12345678901u);
  worker->set_seconds_since_update(0.25);
  worker = status.add_workers();
  worker->set_role("decode");
  worker->set_state("unreachable");
  worker->set_address("127.0.0.1:7402");
  worker->set_detail("connection\nrefused");
  return status;
}

TEST(TableTest, StatusForPeople) {
  EXPECT_EQ(
      StatusTable(Status()),
      "router 0.1.0: 2 requests running, 1 waiting\n"
      "WORKER     ROLE     STATE        ADDRESS         NUMERICS   BLOCKS FREE/USED/LEASED/TOTAL  "
      "RUNNING  WAITING  STEPS        AGE   DETAIL\n"
      "prefill-0  prefill  ready        127.0.0.1:7401  fast/avx2  90/8/2/100                     "
      "3        0        12345678901  0.2s\n"
      "           decode   unreachable  127.0.0.1:7402             0/0/0/0                        "
      "0        0        0            0.0s  connection\\nrefused\n");
}

TEST(TableTest, StatusForPrograms) {
  const auto json = nlohmann::json::parse(StatusJson(Status()));
  EXPECT_EQ(json["requests"]["running"], 2);
  EXPECT_EQ(json["output_tokens"], 98765);
  EXPECT_EQ(json["workers"].size(), 2u);
  EXPECT_EQ(json["workers"][0]["blocks"],
            nlohmann::json({{"total", 100}, {"free", 90}, {"used", 8}, {"leased", 2}}));
  EXPECT_EQ(json["workers"][0]["steps"], 12345678901u);
  EXPECT_EQ(json["workers"][1]["detail"], "connection\nrefused");
}

TEST(TableTest, ReadyWorkersAreCountedByRole) {
  v1::ClusterStatusResponse status = Status();
  EXPECT_EQ(ReadyWorkers(status, "prefill"), 1);
  EXPECT_EQ(ReadyWorkers(status, "decode"), 0);
  status.mutable_workers(1)->set_state("ready");
  EXPECT_EQ(ReadyWorkers(status, "decode"), 1);
}

TEST(TableTest, TokensMayBePartsOfCharacters) {
  v1::TokenizeResponse tokens;
  for (const auto& [id, piece] : {std::pair{7, "a\n"}, std::pair{12345, "\xe2\x82"}}) {
    tokens.add_ids(id);
    tokens.add_pieces(piece);
  }
  EXPECT_EQ(TokensTable(tokens), "       7  \"a\\n\"\n   12345  \"\\xe2\\x82\"\n");
  const auto json = nlohmann::json::parse(TokensJson(tokens));
  EXPECT_EQ(json["token_ids"], nlohmann::json({7, 12345}));
  EXPECT_EQ(json["pieces_hex"], nlohmann::json({"610a", "e282"}));
}

TEST(TableTest, Models) {
  v1::ListModelsResponse models;
  v1::ModelCard* card = models.add_models();
  card->set_id("smollm2");
  card->set_architecture("llama");
  card->set_context_tokens(8192);
  card->set_kv_bytes_per_token(23040);
  card->set_fingerprint("abc");
  EXPECT_EQ(ModelsTable(models),
            "MODEL    ARCHITECTURE  CONTEXT  KV BYTES/TOKEN  FINGERPRINT\n"
            "smollm2  llama         8192     23040           abc\n");
  EXPECT_EQ(nlohmann::json::parse(ModelsJson(models))["models"][0]["kv_bytes_per_token"], 23040);
}

}  // namespace
}  // namespace trivium::cli
