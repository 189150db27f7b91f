// A search graph on disk: PATH.graph as hnswlib writes it, and PATH.keys, which names its entries
// and has the checksum of both. hnswlib believes what it reads, so nothing is given to it that the
// checksum does not vouch for. The files lie in a folder of the router's own user.
// Stateless; one thread a path.
#pragma once

#include <functional>
#include <string>
#include <unordered_map>

#include "common/base/status.h"

namespace trivium::router {

using GraphKeys = std::unordered_map<uint64_t, std::string>;  // by label in the graph

std::string GraphPath(const std::string& path);
// `write` writes the graph into the file that it is given. What was there before is replaced at the
// end, or stays.
absl::Status WriteGraph(const std::string& path, const GraphKeys& keys,
                        const std::function<void(const std::string&)>& write);
// NOT_FOUND: there is none. DATA_LOSS: a file is damaged, or cut, or not of the other.
absl::StatusOr<GraphKeys> ReadGraphKeys(const std::string& path);
void RemoveGraph(const std::string& path);

}  // namespace trivium::router
