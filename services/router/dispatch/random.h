// What the router draws for a request, from the kernel's generator. Stateless; safe from any
// thread.
#pragma once

#include <cstdint>
#include <string>

namespace trivium::router {

std::string DrawSecret();     // 16 bytes; without it no message reaches a landing place
uint64_t DrawSeed();          // of sampling
std::string DrawRequestId();  // "r-" and 32 hex digits

}  // namespace trivium::router
