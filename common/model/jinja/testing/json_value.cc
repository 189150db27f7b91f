#include "common/model/jinja/testing/json_value.h"

#include <nlohmann/json.hpp>

namespace trivium::model::jinja {

absl::StatusOr<Value> FromJson(Workspace& workspace, const nlohmann::ordered_json& json) {
  if (json.is_string()) return workspace.NewText(json.get_ref<const std::string&>());
  if (json.is_boolean()) return Bool(json.get<bool>());
  if (json.is_number_integer()) return Int(json.get<int64_t>());
  if (json.is_number()) return Float(json.get<double>());
  if (json.is_array()) {
    ASSIGN_OR_RETURN(const Value list, workspace.NewSequence(Kind::kList, {}));
    ASSIGN_OR_RETURN(list.sequence->items, workspace.NewItems(json.size()));
    for (size_t i = 0; i < json.size(); ++i) {
      ASSIGN_OR_RETURN(list.sequence->items[i], FromJson(workspace, json[i]));
    }
    return list;
  }
  if (!json.is_object()) return None();
  ASSIGN_OR_RETURN(const Value dict, workspace.NewDict(json.size()));
  for (const auto& [name, member] : json.items()) {
    ASSIGN_OR_RETURN(const Value key, workspace.NewText(name));
    ASSIGN_OR_RETURN(const Value value, FromJson(workspace, member));
    RETURN_IF_ERROR(workspace.SetEntry(*dict.dict, key, value));
  }
  return dict;
}

}  // namespace trivium::model::jinja
