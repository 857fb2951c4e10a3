rule convert:
    input:
        index=manifest("index"),
        pairs=manifest("preprocess"),
        model=manifest(f"train/{MAIN}_seed-{SEEDS[0]}"),
    output:
        manifest("convert"),
    log:
        log_of("convert"),
    benchmark:
        benchmark_of("convert")
    resources:
        gpu=MODEL_GPU,
    params:
        model={"model": {"preset": MAIN}},
        seed={"train": {"seeds": SEEDS[0]}},
        section=section("convert"),
        revision=revision("convert"),
    shell:
        "dualflow convert-study --threads {threads}"
        " --model {params.model[model][preset]} --seed {params.seed[train][seeds]} 2>&1 | tee {log:q}"
