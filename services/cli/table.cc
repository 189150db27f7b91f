#include "services/cli/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/net/text.h"

namespace trivium::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kCellBytesMax = 200;

std::string Dump(const Json& object) {
  return object.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Json WorkerJson(const v1::WorkerStatus& w) {
  return {{"id", w.id()},
          {"role", w.role()},
          {"address", w.address()},
          {"state", w.state()},
          {"detail", w.detail()},
          {"fingerprint", w.fingerprint()},
          {"numerics_class", w.numerics_class()},
          {"epoch", w.epoch()},
          {"steps", w.steps()},
          {"seconds_since_update", w.seconds_since_update()},
          {"blocks",
           {{"total", w.blocks_total()},
            {"free", w.blocks_free()},
            {"used", w.blocks_used()},
            {"leased", w.blocks_leased()}}},
          {"requests", {{"running", w.requests_running()}, {"waiting", w.requests_waiting()}}}};
}

std::string Hex(const std::string& bytes) {
  std::string out;
  for (const char c : bytes) out += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return out;
}

}  // namespace

std::string Table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) line += fmt::format("{:<{}}", row[i], widths[i] + 2);
    out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return out;
}

std::string StatusTable(const v1::ClusterStatusResponse& status) {
  std::vector<std::vector<std::string>> rows = {{"WORKER", "ROLE", "STATE", "ADDRESS", "NUMERICS",
                                                 "BLOCKS FREE/USED/LEASED/TOTAL", "RUNNING",
                                                 "WAITING", "STEPS", "AGE", "DETAIL"}};
  for (const v1::WorkerStatus& w : status.workers()) {
    rows.push_back({net::Escape(w.id(), kCellBytesMax), w.role(), w.state(),
                    net::Escape(w.address(), kCellBytesMax), net::Escape(w.numerics_class(), 40),
                    fmt::format("{}/{}/{}/{}", w.blocks_free(), w.blocks_used(), w.blocks_leased(),
                                w.blocks_total()),
                    std::to_string(w.requests_running()), std::to_string(w.requests_waiting()),
                    std::to_string(w.steps()), fmt::format("{:.1f}s", w.seconds_since_update()),
                    net::Escape(w.detail(), kCellBytesMax)});
  }
  return fmt::format("router {}: {} requests running, {} waiting\n", status.router_version(),
                     status.requests_running(), status.requests_waiting()) +
         Table(rows);
}

std::string StatusJson(const v1::ClusterStatusResponse& status) {
  Json workers = Json::array();
  for (const v1::WorkerStatus& worker : status.workers()) workers.push_back(WorkerJson(worker));
  return Dump({{"router_version", status.router_version()},
               {"requests",
                {{"running", status.requests_running()}, {"waiting", status.requests_waiting()}}},
               {"output_tokens", status.output_tokens()},
               {"workers", std::move(workers)}});
}

std::string ModelsTable(const v1::ListModelsResponse& models) {
  std::vector<std::vector<std::string>> rows = {
      {"MODEL", "ARCHITECTURE", "CONTEXT", "KV BYTES/TOKEN", "FINGERPRINT"}};
  for (const v1::ModelCard& m : models.models()) {
    rows.push_back({net::Escape(m.id(), kCellBytesMax), m.architecture(),
                    std::to_string(m.context_tokens()), std::to_string(m.kv_bytes_per_token()),
                    m.fingerprint()});
  }
  return Table(rows);
}

std::string ModelsJson(const v1::ListModelsResponse& models) {
  Json all = Json::array();
  for (const v1::ModelCard& m : models.models()) {
    all.push_back({{"id", m.id()},
                   {"architecture", m.architecture()},
                   {"fingerprint", m.fingerprint()},
                   {"context_tokens", m.context_tokens()},
                   {"kv_bytes_per_token", m.kv_bytes_per_token()}});
  }
  return Dump({{"models", std::move(all)}});
}

std::string TokensTable(const v1::TokenizeResponse& tokens) {
  std::string out;
  for (int i = 0; i < tokens.ids_size(); ++i) {
    const std::string piece = i < tokens.pieces_size() ? tokens.pieces(i) : "";
    out += fmt::format("{:>8}  \"{}\"\n", tokens.ids(i), net::Escape(piece, 1000));
  }
  return out;
}

std::string TokensJson(const v1::TokenizeResponse& tokens) {
  Json hex = Json::array();
  for (const std::string& piece : tokens.pieces()) hex.push_back(Hex(piece));
  return Dump({{"token_ids", std::vector<int32_t>(tokens.ids().begin(), tokens.ids().end())},
               {"pieces", std::vector<std::string>(tokens.pieces().begin(), tokens.pieces().end())},
               {"pieces_hex", std::move(hex)}});
}

int ReadyWorkers(const v1::ClusterStatusResponse& status, const std::string& role) {
  return static_cast<int>(std::count_if(
      status.workers().begin(), status.workers().end(),
      [&](const auto& worker) { return worker.role() == role && worker.state() == "ready"; }));
}

}  // namespace trivium::cli
