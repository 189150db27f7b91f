// trivium-prefill: the prefill worker.
#include "common/worker/run_worker.h"
#include "services/prefill/prefill_stage.h"

int main(int argc, char** argv) {
  return trivium::worker::RunWorker(argc, argv, "prefill", trivium::prefill::MakePrefillStage);
}
