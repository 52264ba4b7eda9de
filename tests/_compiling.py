"""How tests are compiled where only what they compute matters, and not how fast."""

# Takes half the time that it takes at level 0 alone. A jaxlib that has lost one of
# these flags says so and ends: take it out then.
FLAGS = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)
