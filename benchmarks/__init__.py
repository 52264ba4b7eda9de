"""What diffkm costs beside what one would use without it: time, memory, accuracy.

    python -m benchmarks [topic[.benchmark] ...] [--small | --full]
        [--json FILE [--resume]]
    python -m benchmarks report FILE [--picture PNG [--of estimators | training]]

Topics: losses, passes, distances, fits, quality, streams, compiling, estimators,
training, bridge, reference; all of them without one. Both sides of a ratio are first
checked to compute the same, and then timed in one run, in turns, in float32 and
compiled; a time is the median over the rounds, and behind a ratio stands its range.
Peaks of memory are each of a process of its own. Rivals that are not installed are left
out, and the report says so. Training takes most of an hour in full; where a run was
stopped, `--resume` keeps what its file holds.

The suite has a small runner of its own because those that there are do not pair: in
pytest-benchmark a test times one function, to its end before the next begins, and asv
gives each benchmark its own processes. On a machine with other work, the two sides of a
ratio would then be measured under different loads, and nothing would compare their
results first.

Run it on a machine that nothing else uses: another load slows the rivals' OpenMP
threads several times as much as XLA's and flatters every ratio. The load before and
after is recorded (this program itself makes about 2).
"""
