// Templates that would run for ever or fill the memory: what the bounds of a rendering are for.
#pragma once

#include <string>
#include <vector>

namespace trivium::model::jinja {

// Each must end with RESOURCE_EXHAUSTED under a workspace of any sensible size.
std::vector<std::string> HostileTemplates();

}  // namespace trivium::model::jinja
