// Answers to questions about the cluster, as tables for people and JSON for programs. Stateless.
#pragma once

#include <string>
#include <vector>

#include "trivium/v1/inference.pb.h"

namespace trivium::cli {

// Columns as wide as their widest cell, two spaces apart; the first row is the heading.
std::string Table(const std::vector<std::vector<std::string>>& rows);

std::string StatusTable(const v1::ClusterStatusResponse& status);
std::string StatusJson(const v1::ClusterStatusResponse& status);
std::string ModelsTable(const v1::ListModelsResponse& models);
std::string ModelsJson(const v1::ListModelsResponse& models);
std::string TokensTable(const v1::TokenizeResponse& tokens);
std::string TokensJson(const v1::TokenizeResponse& tokens);

// Workers of `role` in state ready.
int ReadyWorkers(const v1::ClusterStatusResponse& status, const std::string& role);

}  // namespace trivium::cli
