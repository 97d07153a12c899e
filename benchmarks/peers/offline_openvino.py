"""OpenVINO GenAI's continuous batching without HTTP, as a worker of `offline.py`.

Runs in OpenVINO's own environment and does not import Galley:

    $LAB/ov/bin/python offline_openvino.py MODEL.gguf

Each line of its input is {"prompts": [[id …] …], "output": tokens, "concurrency": n}; each line of
its output {"seconds": wall time, "tokens": generated}.
"""

import json
import sys
import time

import numpy as np
import openvino
import openvino_genai as genai


def make_pipeline(model: str) -> genai.ContinuousBatchingPipeline:
    scheduling = genai.SchedulerConfig()
    scheduling.cache_size = 2
    scheduling.max_num_seqs = 64
    scheduling.max_num_batched_tokens = 2048
    scheduling.dynamic_split_fuse = True
    scheduling.enable_prefix_caching = True
    return genai.ContinuousBatchingPipeline(
        model, scheduler_config=scheduling, device="CPU", properties={}
    )


def generation(output: int) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = output
    config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
    return config


class Worker:
    def __init__(self, model: str) -> None:
        self.pipeline = make_pipeline(model)
        self.last_id = 0

    def run(self, prompts: list, output: int, concurrency: int) -> dict:
        """Closed loop: a finished request is replaced at once."""
        waiting, total = list(reversed(prompts)), 0
        running: dict = {}
        begin = time.perf_counter()
        while waiting or running:
            while waiting and len(running) < concurrency:
                self.last_id += 1
                ids = openvino.Tensor(np.array([waiting.pop()], dtype=np.int64))
                handle = self.pipeline.add_request(self.last_id, ids, generation(output))
                running[self.last_id] = [handle, 0]
            self.pipeline.step()
            for key, entry in list(running.items()):
                while entry[0].can_read():
                    entry[1] += sum(len(o.generated_ids) for o in entry[0].read().values())
                if entry[1] >= output:
                    total += entry[1]
                    del running[key]
        return {"seconds": time.perf_counter() - begin, "tokens": total}


def main() -> None:
    worker = Worker(sys.argv[1])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        print(json.dumps(worker.run(**task)), flush=True)


if __name__ == "__main__":
    main()
