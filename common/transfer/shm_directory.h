// A directory of this process for shared-memory segments. A process that is killed leaves its
// segments behind; whoever starts next on the machine removes them, which a lock held for life
// makes safe. Thread-safety: Get() from any thread.
#pragma once

#include <string>

namespace trivium::transfer {

// Made at the first call, removed at exit. "/dev/shm" when none can be made.
const std::string& ShmDirectory();

}  // namespace trivium::transfer
