"""Load on any OpenAI-compatible server: latencies, throughput, goodput, refusals and failures.

Closed loop, with as many requests open as you say; open loop, with arrivals at a rate; or users:

    python -m benchmarks.load_test --max-concurrency 32 --num-prompts 200
    python -m benchmarks.load_test --request-rate 4 --burstiness 0.5 --goodput ttft:200 tpot:50
    python -m benchmarks.load_test --users 50 --spawn-rate 5 --duration 60 --plot load.png

With --audio it sends sound files in place of prompts, and tells the seconds of sound a second.

Flags and figures have the names of `vllm bench serve`. Lengths of random prompts are tokens as the
server counts them: two small requests measure how many it makes of a word. The ceiling is this
program's own processor, so it says how busy that was; what shares the server's cores slows it.

Prints tables, then one line of JSON. The exit status is 1 when a request failed or none was
answered, 2 when the load could not begin. A refusal (429, 503) is counted, and is no failure.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # run as a file
        sys.path[0] = str(Path(__file__).resolve().parents[1])
    from benchmarks.load.command import main

    sys.exit(main(__doc__))
