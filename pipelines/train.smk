rule train:
    input:
        index=manifest("index"),
        pairs=manifest("preprocess"),
    output:
        manifest("train/{model}_seed-{seed}"),
    log:
        log_of("train/{model}_seed-{seed}"),
    benchmark:
        benchmark_of("train/{model}_seed-{seed}")
    # A training that is preempted, or killed, goes on from its newest state.
    retries: 3
    threads: study.train.threads * study.train.processes
    resources:
        gpu=0 if study.train.device == "cpu" else study.train.processes,
    params:
        section=model_section,
        version=__version__,
        threads=study.train.threads,
    shell:
        "dualflow train --threads {params.threads}"
        " --model {wildcards.model} --seed {wildcards.seed} 2>&1 | tee {log:q}"
