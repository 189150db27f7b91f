// trivium-decode: the decode worker.
#include "common/worker/run_worker.h"
#include "services/decode/decode_stage.h"

int main(int argc, char** argv) {
  return trivium::worker::RunWorker(argc, argv, "decode", trivium::decode::MakeDecodeStage);
}
