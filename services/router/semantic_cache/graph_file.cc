#include "services/router/semantic_cache/graph_file.h"

#include <xxhash.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <vector>

namespace trivium::router {
namespace {

constexpr char kMagic[] = "TRVGRPH1";
constexpr size_t kMagicBytes = 8, kHeaderBytes = kMagicBytes + sizeof(uint64_t);
constexpr size_t kKeyBytes = 32, kRowBytes = sizeof(uint64_t) + kKeyBytes;
constexpr uint64_t kRowsMax = uint64_t{1} << 26;

std::string KeysPath(const std::string& path) { return path + ".keys"; }

// Of the graph's bytes and of the rows behind the header.
absl::StatusOr<uint64_t> Checksum(const std::string& graph, const std::string& rows) {
  std::ifstream in(graph, std::ios::binary);
  if (!in) return absl::NotFoundError(graph);
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  XXH3_64bits_reset(state.get());
  std::vector<char> part(1 << 20);
  while (in.read(part.data(), static_cast<std::streamsize>(part.size())) || in.gcount() > 0) {
    XXH3_64bits_update(state.get(), part.data(), static_cast<size_t>(in.gcount()));
  }
  XXH3_64bits_update(state.get(), rows.data(), rows.size());
  return XXH3_64bits_digest(state.get());
}

std::string RowsOf(const GraphKeys& keys) {
  std::string rows;
  for (const auto& [label, key] : keys) {
    TRIVIUM_CHECK(key.size() == kKeyBytes, "a key of {} bytes", key.size());
    rows.append(reinterpret_cast<const char*>(&label), sizeof(label));
    rows += key;
  }
  return rows;
}

}  // namespace

std::string GraphPath(const std::string& path) { return path + ".graph"; }

absl::Status WriteGraph(const std::string& path, const GraphKeys& keys,
                        const std::function<void(const std::string&)>& write) {
  const std::string graph = GraphPath(path), rows = RowsOf(keys), made = graph + ".new";
  try {
    write(made);
  } catch (const std::exception& error) {
    return Unavailable("cannot write {}: {}", made, error.what());
  }
  ASSIGN_OR_RETURN(const uint64_t checksum, Checksum(made, rows));
  // Until the keys are there again, the graph is of no use.
  std::remove(KeysPath(path).c_str());
  std::ofstream out(KeysPath(path) + ".new", std::ios::binary | std::ios::trunc);
  out.write(kMagic, kMagicBytes);
  out.write(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
  out << rows;
  out.close();
  if (!out || std::rename(made.c_str(), graph.c_str()) != 0 ||
      std::rename((KeysPath(path) + ".new").c_str(), KeysPath(path).c_str()) != 0) {
    return Unavailable("cannot write {}", path);
  }
  return absl::OkStatus();
}

absl::StatusOr<GraphKeys> ReadGraphKeys(const std::string& path) {
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(KeysPath(path), error);
  if (error) return absl::NotFoundError(KeysPath(path));
  if (size < kHeaderBytes || (size - kHeaderBytes) % kRowBytes != 0 ||
      (size - kHeaderBytes) / kRowBytes > kRowsMax) {
    return absl::DataLossError("the file of keys is cut");
  }
  std::ifstream in(KeysPath(path), std::ios::binary);
  std::string bytes(size, '\0');
  if (!in.read(bytes.data(), static_cast<std::streamsize>(size))) {
    return absl::DataLossError("the file of keys is cut");
  }
  uint64_t wanted = 0;
  std::memcpy(&wanted, bytes.data() + kMagicBytes, sizeof(wanted));
  const std::string rows = bytes.substr(kHeaderBytes);
  const absl::StatusOr<uint64_t> checksum = Checksum(GraphPath(path), rows);
  if (std::memcmp(bytes.data(), kMagic, kMagicBytes) != 0 || !checksum.ok() ||
      *checksum != wanted) {
    return absl::DataLossError("the checksum is another");
  }
  GraphKeys keys;
  for (size_t at = 0; at < rows.size(); at += kRowBytes) {
    uint64_t label = 0;
    std::memcpy(&label, rows.data() + at, sizeof(label));
    keys.emplace(label, rows.substr(at + sizeof(label), kKeyBytes));
  }
  return keys;
}

void RemoveGraph(const std::string& path) {
  std::remove(KeysPath(path).c_str());
  std::remove(GraphPath(path).c_str());
}

}  // namespace trivium::router
